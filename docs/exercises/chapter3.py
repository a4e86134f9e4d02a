"""Exercises of chapter 3: fill in the functions."""

import torch


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention (B, H, T, D) of queries, keys and values (B, H, T, D), without a loop."""
    raise NotImplementedError


def grouped_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention (B, H, T, D) of queries (B, H, T, D) and of keys and values (B, K, T, D).

    H is a multiple of K. The first H / K query heads use the first key/value head, and so on.
    """
    raise NotImplementedError
