"""Exercises of chapter 7: data."""


def near_duplicates(signatures: dict[str, list[int]], buckets: int) -> set[tuple[str, str]]:
    """Exercise 7.1: return the pairs of documents that have a bucket in common.

    Args:
        signatures: The numbers of each document by its name, equally many of each.
        buckets: Groups of equal size that a signature is cut into, from the left.

    Returns:
        Pairs of names, the smaller one first. Only documents that meet in a table may be compared.
    """
    raise NotImplementedError


def leaks(train: list[str], test: list[str], n: int) -> list[int]:
    """Exercise 7.2: return the numbers of the test texts, from 0, that share a run of `n` words with a training text.

    A word is what stands between spaces, in small letters and without punctuation at its ends.
    """
    raise NotImplementedError
