"""Solutions of chapter 10."""

import math

import torch


def min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Compare the shares with the largest one."""
    shares = logits.softmax(-1)
    return logits.masked_fill(shares < p * shares.max(), -math.inf)


def cache_bytes(tokens: int, layers: int, key_value_heads: int, head_dim: int, bytes_per_number: int) -> int:
    """Count a key and a value for each token, layer and key/value head."""
    return 2 * tokens * layers * key_value_heads * head_dim * bytes_per_number
