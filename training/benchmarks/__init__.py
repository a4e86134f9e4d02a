"""Measurements of speed and memory, each a command whose output is the raw material of a record."""
