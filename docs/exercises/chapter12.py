"""Exercises of chapter 12: release."""


def find_leaks(text: str) -> list[int]:
    """Exercise 12.1: return the numbers of the lines, from 1, that must not be published.

    A line must not hold a token of the Hub, which is `hf_` and at least 30 letters or digits, nor a path of
    somebody's home folder, below `/home/` or `/Users/`. An address such as `https://example.com/home/page` is none.
    """
    raise NotImplementedError


def false_claims(card: str, results: dict[str, float]) -> list[str]:
    """Exercise 12.2: return the names of the results that a card states otherwise than measured, in their order.

    Args:
        card: Markdown with a line `| name | number % |` for a result; other lines are of no interest.
        results: The shares that were measured, from 0 to 1. The card states them in percent, with as many digits
            behind the point as it likes, and must have rounded them rightly.

    Returns:
        Also the results that the card does not state.
    """
    raise NotImplementedError
