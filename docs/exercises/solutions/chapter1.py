"""Solutions of chapter 1."""

from typing import Any


def encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply one merge after the other to all its occurrences, from left to right."""
    units = list(word)
    for pair in merges:
        merged: list[str] = []
        for unit in units:
            if merged and (merged[-1], unit) == pair:
                merged[-1] += unit
            else:
                merged.append(unit)
        units = merged
    return units


def tokens_per_word(tokenizer: Any, text: str) -> float:
    """Divide the tokens of the whole text by its words."""
    return len(tokenizer(text)["input_ids"]) / len(text.split())
