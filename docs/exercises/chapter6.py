"""Exercises of chapter 6: fill in the functions."""

from typing import Any

import torch


def learning_rate(step: int, max_steps: int, peak: float, warmup: int) -> float:
    """Return the rate of a step, counted from 0.

    Step 0 has peak / warmup and each step as much more, so that step warmup - 1 has the peak. From step `warmup` on
    the rate is a half cosine, from the peak at step `warmup` to 0 at `max_steps`.
    """
    raise NotImplementedError


def accumulate(model: Any, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Leave in `.grad` of each weight the gradient of the mean loss over all pieces' counted tokens.

    Args:
        model: Called with ids (rows, T), it returns an object with `logits` (rows, T, V). Its gradients are empty.
        pieces: Ids and labels (rows, T) each. Labels are shifted already; -100 carries no loss.
    """
    raise NotImplementedError
