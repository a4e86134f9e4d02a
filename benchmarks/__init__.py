"""One command for each table of the README: ours beside what people use today, interleaved in one run."""
