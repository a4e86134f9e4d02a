"""Checks of chapter 3."""

from typing import Any

import torch
from torch.nn import functional as F


def check_1(code: Any) -> None:
    """The same as PyTorch's kernel, and nobody sees the future."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    found = code.attention(q, k, v)
    assert found.shape == v.shape, f"the output has the shape {tuple(found.shape)}, not {tuple(v.shape)}"
    later = v.clone()
    later[:, :, -1] += 1
    assert torch.allclose(code.attention(q, k, later)[:, :, :-1], found[:, :, :-1]), "a position sees the last value"
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(found, right, atol=1e-5), "the mask is right, but the output is not; is the scaling right?"


def check_2(code: Any) -> None:
    """Heads of a group share keys and values, neighbours first."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    found = code.grouped_attention(q, k, v)
    assert found.shape == q.shape, f"the output has the shape {tuple(found.shape)}, not {tuple(q.shape)}"
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(found, right, atol=1e-5), "query heads 0, 1 and 2 use key/value head 0, and 3 to 5 head 1"
