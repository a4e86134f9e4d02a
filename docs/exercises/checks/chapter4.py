"""Checks of chapter 4."""

from typing import Any

import torch

from hf_scratch import ScratchConfig, ScratchForCausalLM


def check_1(code: Any) -> None:
    """The same as PyTorch's RMSNorm, at zero too."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8) * 10, torch.rand(8)
    found = code.rms_norm(x, weight, 1e-6)
    right = torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)
    assert found.shape == x.shape, f"the output has the shape {tuple(found.shape)}, not {tuple(x.shape)}"
    assert torch.allclose(found, right, atol=1e-5), "the output differs from torch.nn.functional.rms_norm"
    assert not code.rms_norm(torch.zeros(8), weight, 1e-6).isnan().any(), "a vector of zeros gives nan: where is eps?"


def check_2(code: Any) -> None:
    """The same as the model says, with groups and with a head_dim of its own."""
    for sizes in ((1000, 128, 384, 4, 4, 4, 32), (500, 64, 100, 3, 8, 2, 8), (300, 48, 96, 2, 4, 1, 20)):
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        heads = ("num_attention_heads", "num_key_value_heads", "head_dim")
        with torch.device("meta"):
            model = ScratchForCausalLM(ScratchConfig(**dict(zip(names + heads, sizes, strict=True))))
        found = code.count_parameters(*sizes)
        assert found == model.num_parameters(), f"{sizes} gives {found}, but the model has {model.num_parameters()}"
