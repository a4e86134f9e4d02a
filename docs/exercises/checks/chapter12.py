"""Checks of chapter 12."""

from types import ModuleType


def check_1(code: ModuleType) -> None:
    """Tokens and home folders are found, and nothing else."""
    token = "hf_" + "aB3" * 11
    lines = [
        "loss 1.93 after 200 steps",
        f"login with {token}",
        "saved to /home/anna/runs/model",
        'reading "/Users/anna/text.txt"',
        "see https://example.com/home/page",
        "hf_scratch is a package",
        f"export TOKEN={token}",
        "data/home/notes.txt is a relative path",
    ]
    found = list(code.find_leaks("\n".join(lines)))
    for number in (2, 3, 4, 7):
        assert number in found, f"line {number} must be found: {lines[number - 1].replace(token, 'hf_...')}"
    for number in (1, 5, 6, 8):
        assert number not in found, f"line {number} is harmless: {lines[number - 1]}"
    assert found == [2, 3, 4, 7], "in order, each once"
    assert code.find_leaks("") == []


def check_2(code: ModuleType) -> None:
    """What was rounded rightly is true, all else is not."""
    card = (
        "# A model\n\n| task | rate |\n| --- | --- |\n| followed | 99.0 % |\n| ended | 100 % |\n| honest | 97.5 % |\n"
    )
    assert code.false_claims(card, {"followed": 0.99, "ended": 1.0, "honest": 0.975}) == []
    assert code.false_claims(card, {"followed": 0.9896, "ended": 0.998, "honest": 0.97513}) == [], (
        "all rounded rightly"
    )
    assert code.false_claims(card, {"honest": 0.96, "followed": 0.99}) == ["honest"], (
        "97.5 % was stated, 96 % measured"
    )
    assert code.false_claims(card, {"followed": 0.98949}) == ["followed"], "98.949 is 98.9 with one digit, not 99.0"
    assert code.false_claims(card, {"quick": 0.5}) == ["quick"], "a result that is not stated is hidden"
