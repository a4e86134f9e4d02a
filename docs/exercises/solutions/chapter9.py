"""Solutions of chapter 9."""

import math

import torch


def ipo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Aim at a difference, and not beyond it."""
    difference = (chosen - reference_chosen) - (rejected - reference_rejected)
    return (difference - 1 / (2 * beta)) ** 2


def mcnemar_p(gained: int, lost: int) -> float:
    """Add up both tails, which are alike."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)
