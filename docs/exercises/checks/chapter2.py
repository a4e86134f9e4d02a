"""Checks of chapter 2."""

from typing import Any

import torch


def check_1(code: Any) -> None:
    """Bits, not nats, and for each byte, not each token."""
    found = code.bits_per_byte([0.5, 0.25], 3)
    assert abs(found - 1.0) < 1e-9, f"1 bit and 2 bits for 3 bytes are 1.0 bits per byte, not {found}"
    found = code.bits_per_byte([1.0, 1.0], 5)
    assert abs(found) < 1e-9, f"who is sure and right needs no bits, not {found}"


def check_2(code: Any) -> None:
    """The same states as torch.nn.RNN."""
    torch.manual_seed(0)
    network = torch.nn.RNN(4, 4)
    inputs = torch.randn(7, 4)
    with torch.no_grad():
        right, _ = network(inputs)
        bias = network.bias_ih_l0 + network.bias_hh_l0
        found = code.rnn_states(inputs, network.weight_ih_l0, network.weight_hh_l0, bias)
    assert found.shape == right.shape, f"the states have the shape {tuple(found.shape)}, not {tuple(right.shape)}"
    assert torch.allclose(found[0], right[0], atol=1e-5), "the first state is wrong; the state before it is zero"
    assert torch.allclose(found, right, atol=1e-5), "the first state is right, a later one is not"
