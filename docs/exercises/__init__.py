"""Exercises: write the function in `chapterN.py`, then run `python -m docs.exercises.check N.1`."""
