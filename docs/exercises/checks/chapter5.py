"""Checks of chapter 5."""

from typing import Any

import torch


def check_1(code: Any) -> None:
    """The product is right, and the matrices are not trivial."""
    values, outputs = code.copying_pair(16, 0.3)
    assert values.shape == outputs.shape == (16, 16), f"shapes are {tuple(values.shape)} and {tuple(outputs.shape)}"
    assert torch.allclose(outputs @ values, 0.3 * torch.eye(16), atol=1e-5), "outputs @ values is not 0.3 x identity"
    for name, matrix in (("values", values), ("outputs", outputs)):
        assert (matrix - matrix.diag().diag()).abs().max() > 0.01, f"{name} is diagonal; take a random turn"


def check_2(code: Any) -> None:
    """Three heads that look at one place write what stands there, once."""
    values = torch.nn.init.orthogonal_(torch.empty(8, 8))
    outputs = code.same_values(values, 3)
    assert outputs.shape == (8, 24), f"the output matrix has the shape {tuple(outputs.shape)}, not (8, 24)"
    written = outputs @ torch.cat([values] * 3)
    assert not torch.allclose(written, 3 * torch.eye(8), atol=1e-4), "the vector is written three times"
    assert torch.allclose(written, torch.eye(8), atol=1e-5), "what is written is not what stands there"
