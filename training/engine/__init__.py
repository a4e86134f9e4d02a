"""Pretraining's parts: rows, loss, optimizer, processes, checkpoints, the log, and what all of it costs."""
