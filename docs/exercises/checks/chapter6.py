"""Checks of chapter 6."""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def check_1(code: Any) -> None:
    """The values at the corners, and half of the peak in the middle of the fall."""
    for step, right in ((0, 0.25), (3, 1.0), (4, 1.0), (54, 0.5), (104, 0.0)):
        found = code.learning_rate(step, 104, 1.0, 4)
        assert abs(found - right) < 1e-6, f"step {step} of 104 with a warmup of 4 has the rate {found}, not {right}"


def check_2(code: Any) -> None:
    """The gradient of the whole batch, from uneven pieces."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7))

    def model(ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=network(ids))

    ids, labels = torch.randint(7, (6, 5)), torch.randint(7, (6, 5))
    labels[0:3, 1:] = -100
    F.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten()).backward()
    right = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
    network.zero_grad()
    code.accumulate(model, [(ids[:1], labels[:1]), (ids[1:4], labels[1:4]), (ids[4:], labels[4:])])
    found = [weight.grad for weight in network.parameters()]
    assert all(gradient is not None for gradient in found), "a weight has no gradient: is `backward` called?"
    close = all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, right, strict=True))
    assert close, "the gradient differs from that of the whole batch: divide by the tokens of all pieces"
