"""The embedded corpus: a small procedural world of children's stories, told from a grammar."""
