"""Checks of chapter 9."""

import math
from typing import Any

import torch


def check_1(code: Any) -> None:
    """0 at the aim, and more on both sides of it."""
    old = torch.tensor([-20.0, -7.0]), torch.tensor([-30.0, -7.0])
    first = code.ipo_loss(*old, *old, 0.5)
    assert torch.allclose(first, torch.ones(2)), f"at first it is 1 / (2 beta) squared, here 1, not {first}"
    there = code.ipo_loss(old[0] + 1, old[1], *old, 0.5)
    assert torch.allclose(there, torch.zeros(2)), f"at a difference of 1 / (2 beta) it is 0, not {there}"
    beyond = code.ipo_loss(old[0], old[1] - 3, *old, 0.5)
    assert torch.allclose(beyond, torch.full((2,), 4.0)), f"2 nats beyond the aim it is 4, not {beyond}"


def check_2(code: Any) -> None:
    """Both tails, and never above 1."""
    for gained, lost, right in ((3, 1, 0.625), (1, 3, 0.625), (10, 0, 2 / 1024), (4, 4, 1.0), (0, 0, 1.0)):
        found = code.mcnemar_p(gained, lost)
        assert math.isclose(found, right), f"mcnemar_p({gained}, {lost}) gives {found}, not {right}"
