"""Conversations and preference pairs: read, told apart, tokenized and checked."""
