"""Checks of chapter 1."""

from typing import Any

from hf_scratch import train_tokenizer

TEXT = "the cat sat on the mat and the hat was on the cat " * 20


def check_1(code: Any) -> None:
    """Merges apply in their order, to all places, and not inside of what is merged already."""
    merges = [("o", "w"), ("l", "ow"), ("e", "r")]
    found = code.encode("lower", merges)
    assert found == ["low", "er"], f"encode('lower') gives {found}, not ['low', 'er']"
    found = code.encode("lowlow", merges)
    assert found == ["low", "low"], f"each occurrence is merged: encode('lowlow') gives {found}, not ['low', 'low']"
    found = code.encode("aaa", [("a", "a")])
    assert found == ["aa", "a"], f"pairs are taken from the left: encode('aaa') gives {found}, not ['aa', 'a']"
    found = code.encode("ab", [("ab", "c"), ("a", "b")])
    assert found == ["ab"], f"encode('ab') gives {found}, not ['ab']"
    assert code.encode("", merges) == [], "an empty word has no units"


def check_2(code: Any) -> None:
    """The share is that of the whole text."""
    tokenizer = train_tokenizer([TEXT], vocab_size=270, show_progress=False)
    found, right = code.tokens_per_word(tokenizer, TEXT), len(tokenizer(TEXT)["input_ids"]) / len(TEXT.split())
    assert abs(found - right) < 1e-9, f"tokens_per_word gives {found}, not {right:.4f}"
    spread = "a  b"
    found, right = code.tokens_per_word(tokenizer, spread), len(tokenizer(spread)["input_ids"]) / 2
    assert abs(found - right) < 1e-9, f"for {spread!r} it gives {found}, not {right}: do spaces count as words?"
