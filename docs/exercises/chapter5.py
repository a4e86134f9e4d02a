"""Exercises of chapter 5: fill in the functions."""

import torch


def copying_pair(width: int, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices `values` and `outputs`, (width, width), with outputs @ values = strength x identity.

    Neither of them may be diagonal. `torch.nn.init.orthogonal_` makes a random matrix Q with Q^T Q = identity.
    """
    raise NotImplementedError


def same_values(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the output matrix (D, groups x D) of one layer whose `groups` query heads share one value head.

    values: The value matrix (D, D), orthogonal. When all heads look at the same position, what they write together
    must be exactly the vector that stands there: outputs @ [values; values; ...] = identity.
    """
    raise NotImplementedError
