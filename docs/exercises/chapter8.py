"""Exercises of chapter 8: fill in the functions."""

from collections.abc import Sequence

import torch


def labels(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """Return the labels of a row: the token where the mask is 1, and -100 where it is 0.

    labels([5, 6, 7], [0, 1, 1]) is [-100, 6, 7]. The model shifts them itself.
    """
    raise NotImplementedError


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the matrix (m, n) with its adapter in it; a is (r, n), b is (m, r). The weight stays as it was."""
    raise NotImplementedError
