"""Exercises of chapter 2: fill in the functions."""

from collections.abc import Sequence

import torch


def bits_per_byte(probabilities: Sequence[float], num_bytes: int) -> float:
    """Return bits per byte of a text of `num_bytes` bytes from the probability that the model gave each token."""
    raise NotImplementedError


def rnn_states(
    inputs: torch.Tensor, of_input: torch.Tensor, of_state: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return all states (T, C) of the recurrent network h_t = tanh(of_input x_t + of_state h_(t-1) + bias).

    Args:
        inputs: The vectors x_t, (T, C).
        of_input: (C, C).
        of_state: (C, C).
        bias: (C,). The state before the first input is zero.
    """
    raise NotImplementedError
