"""Solutions of chapter 2."""

import math
from collections.abc import Sequence

import torch


def bits_per_byte(probabilities: Sequence[float], num_bytes: int) -> float:
    """Each token costs -log2 of its probability."""
    return sum(-math.log2(p) for p in probabilities) / num_bytes


def rnn_states(
    inputs: torch.Tensor, of_input: torch.Tensor, of_state: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Go through the text, one state after the other."""
    state = torch.zeros_like(bias)
    states = []
    for x in inputs:
        state = torch.tanh(of_input @ x + of_state @ state + bias)
        states.append(state)
    return torch.stack(states)
