"""Checks of chapter 7."""

from types import ModuleType


def check_1(code: ModuleType) -> None:
    """Pairs that share a bucket are found, and no others."""
    signatures = {
        "a": [1, 2, 3, 4, 5, 6],
        "b": [1, 2, 9, 9, 8, 8],
        "c": [7, 7, 7, 7, 5, 6],
        "d": [0, 0, 1, 2, 0, 0],
    }
    found = code.near_duplicates(signatures, 3)
    assert ("a", "b") in found, "a and b are equal in their first bucket, 1 2"
    assert ("a", "c") in found, "a and c are equal in their last bucket, 5 6"
    assert ("a", "d") not in found, "1 2 is the first bucket of a and the second one of d: that is no match"
    assert found == {("a", "b"), ("a", "c")}, f"found {sorted(found)}"
    whole = code.near_duplicates(signatures, 1)
    assert whole == set(), "with one bucket all six numbers must be equal"

    class Counted(int):
        comparisons = 0

        def __eq__(self, other: object) -> bool:
            Counted.comparisons += 1
            return int(self) == other

        __hash__ = int.__hash__

    many = {f"{i:04}": [Counted(10 * i + j) for j in range(6)] for i in range(2000)}
    assert code.near_duplicates(many, 3) == set(), "documents without an equal number were paired"
    assert Counted.comparisons < 100_000, "every pair was compared; let documents meet in a dictionary"


def check_2(code: ModuleType) -> None:
    """Shared runs are found whatever the capitals and punctuation, and short texts never."""
    train = ["The quick brown fox jumps over the lazy dog.", "Nothing to see here."]
    test = [
        'He said: "QUICK brown fox, jumps!"',
        "quick fox brown jumps over dog",
        "brown fox",
        "to see nothing here now",
    ]
    assert code.leaks(train, test, 4) == [0], "only the first text shares a run of four words"
    assert code.leaks(train, test, 2) == [0, 1, 2, 3], "with runs of two words all four do"
    assert code.leaks(train, ["dog nothing to"], 3) == [], "a run must not go from one training text into the next"
    assert code.leaks([], test, 4) == []
