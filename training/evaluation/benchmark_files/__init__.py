"""Benchmarks of the field as lm-evaluation-harness tasks that read the data sets' own files from a folder."""
