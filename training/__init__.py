"""The way from raw text to an aligned, released model: one stage a file, run from a clone of the repository."""
