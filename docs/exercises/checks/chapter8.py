"""Checks of chapter 8."""

from typing import Any

import torch
from torch.nn import functional as F


def check_1(code: Any) -> None:
    """Tokens of the answer, at their own places."""
    found = list(code.labels([5, 6, 7], [0, 1, 1]))
    assert found == [-100, 6, 7], f"labels([5, 6, 7], [0, 1, 1]) gives {found}, not [-100, 6, 7]"
    found = list(code.labels([0, 0], [1, 0]))
    assert found == [0, -100], f"token 0 is a token like others: labels([0, 0], [1, 0]) gives {found}, not [0, -100]"


def check_2(code: Any) -> None:
    """The merged matrix does what weight and adapter did side by side."""
    torch.manual_seed(0)
    weight, a, b, x = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2), torch.randn(3, 5)
    before = weight.clone()
    found = code.merge(weight, a, b, 8.0)
    assert torch.equal(weight, before), "the weight that was given must stay as it was"
    assert found.shape == weight.shape, f"the shape is {tuple(found.shape)}, not {tuple(weight.shape)}"
    side_by_side = F.linear(x, before) + 4 * F.linear(F.linear(x, a), b)
    assert torch.allclose(F.linear(x, found), side_by_side, atol=1e-4), "the adapter counts by alpha / r, here 8 / 2"
