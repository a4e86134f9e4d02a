"""Solutions to chapter 7: data."""

import string
from itertools import combinations


def near_duplicates(signatures: dict[str, list[int]], buckets: int) -> set[tuple[str, str]]:
    """Solve 7.1: documents with an equal group meet under one key."""
    table: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in signatures.items():
        size = len(numbers) // buckets
        for bucket in range(buckets):
            # The number of the bucket is a part of the key: equal numbers in another place mean nothing.
            table.setdefault((bucket, *numbers[bucket * size : (bucket + 1) * size]), []).append(name)
    return {pair for names in table.values() for pair in combinations(sorted(names), 2)}


def leaks(train: list[str], test: list[str], n: int) -> list[int]:
    """Solve 7.2: one set of all runs of the training texts."""
    known = set().union(*(_runs(text, n) for text in train))
    return [number for number, text in enumerate(test) if _runs(text, n) & known]


def _runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = [word for word in (part.strip(string.punctuation) for part in text.lower().split()) if word]
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
