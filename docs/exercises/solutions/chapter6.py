"""Solutions of chapter 6."""

import math
from typing import Any

import torch
from torch.nn import functional as F


def learning_rate(step: int, max_steps: int, peak: float, warmup: int) -> float:
    """A line, then half a wave."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (max_steps - warmup)))


def accumulate(model: Any, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Divide each sum by the tokens of the whole."""
    total = sum(int((labels != -100).sum()) for _, labels in pieces)
    for ids, labels in pieces:
        loss = F.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss / total).backward()
