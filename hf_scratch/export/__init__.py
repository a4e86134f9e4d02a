"""Other forms of a model, each measured against the original."""
