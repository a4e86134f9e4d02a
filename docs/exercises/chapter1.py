"""Exercises of chapter 1: fill in the functions."""


def encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Split a word into letters and apply the merges in the order in which they were learned.

    encode("lower", [("o", "w"), ("l", "ow")]) is ["low", "e", "r"].
    """
    raise NotImplementedError


def tokens_per_word(tokenizer, text: str) -> float:  # type: ignore[no-untyped-def]
    """Return how many tokens a word of the text takes on average. Words are what `split` gives."""
    raise NotImplementedError
