"""Exercises of chapter 9: fill in the functions."""

import torch


def ipo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return the loss of each pair: the square of how far the difference of the log-ratios is from 1 / (2 beta).

    The arguments are log-probabilities of answers, (pairs,).
    """
    raise NotImplementedError


def mcnemar_p(gained: int, lost: int) -> float:
    """Return how likely a split as uneven as this one, or more so, is for a fair coin. At most 1."""
    raise NotImplementedError
