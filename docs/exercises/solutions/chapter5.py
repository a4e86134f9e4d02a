"""Solutions of chapter 5."""

import torch


def copying_pair(width: int, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A random turn, and the turn back."""
    turn = torch.nn.init.orthogonal_(torch.empty(width, width))
    return turn, strength * turn.T


def same_values(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Each head turns back and writes its share."""
    return torch.cat([values.T / groups] * groups, dim=1)
