"""Solutions to chapter 12: release."""

import re

LEAK = re.compile(r"hf_[A-Za-z0-9]{30,}|(?<![\w.:/-])/(home|Users)/[\w.-]+")


def find_leaks(text: str) -> list[int]:
    """Solve 12.1: before a path of the disk stands no part of an address."""
    return [number for number, line in enumerate(text.splitlines(), start=1) if LEAK.search(line)]


def false_claims(card: str, results: dict[str, float]) -> list[str]:
    """Solve 12.2: a number says by its digits how exact it wants to be."""
    stated = dict(re.findall(r"^\|\s*([^|]+?)\s*\|\s*([\d.]+) %\s*\|\s*$", card, re.MULTILINE))
    wrong = []
    for name, share in results.items():
        digits = len(stated.get(name, "").partition(".")[2])
        if stated.get(name) != f"{100 * share:.{digits}f}":
            wrong.append(name)
    return wrong
