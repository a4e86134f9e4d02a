"""Solutions of chapter 4."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Square, mean, root, divide."""
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def count_parameters(
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    head_dim: int,
) -> int:
    """Count queries and outputs, keys and values, the norms of a head, the MLP, and the norms of a layer."""
    attention = 2 * hidden_size * heads * head_dim + 2 * hidden_size * key_value_heads * head_dim + 2 * head_dim
    layer = attention + 3 * hidden_size * intermediate_size + 2 * hidden_size
    return vocab_size * hidden_size + layers * layer + hidden_size
