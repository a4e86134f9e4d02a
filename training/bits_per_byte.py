"""Held-out bits per byte: how many bits a model needs for each byte of text, whatever its tokenizer.

Pretraining and evaluation call this one function, so that their numbers can be compared. A document longer than the
context is read through a sliding window, in which each token is predicted from at least `context - stride` tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from training.data.batches import Tokens


@dataclass(frozen=True)
class BitsPerByte:
    """What a model needs for a text: nats a token, bits a byte, and how much text that was measured on."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class _Window:
    """Tokens `start .. start + length` are read; the loss of the first `seen` was counted by the window before."""

    start: int
    length: int
    seen: int


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel,
    tokens: Tokens,
    starts: np.ndarray,
    num_bytes: int,
    context: int,
    device: torch.device | str,
    batch_tokens: int = 8192,
    stride: int | None = None,
) -> BitsPerByte:
    """Score documents: the sum over their text tokens of -ln p(token | document so far), in bits for each byte.

    The separator before a document is its first context and no text; the one behind it is not scored.

    Args:
        model: A causal language model; its train or eval mode is left as it was.
        tokens: The stream (N,) of ids: separator, document, separator, document, ..., separator.
        starts: Position (documents,) of each document's separator, ascending.
        num_bytes: UTF-8 bytes of these documents.
        context: Longest input in tokens.
        batch_tokens: Tokens of a batch, padding included; one window at least. The result does not depend on it.
        stride: How far the window moves on in a document longer than `context`; None means half of it.

    Raises:
        ValueError: No text, or a stride that would leave tokens out.
    """
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride} must be between 1 and the context of {context} tokens.")
    windows = _windows(starts, len(tokens) - 1, context, stride)
    if not windows or num_bytes <= 0:
        raise ValueError(
            f"there is no text to score ({len(starts)} documents, {num_bytes} bytes); give held-out text."
        )
    was_training = model.training
    model.eval()
    nats = sum(_nats(model, tokens, batch, device) for batch in _batches(windows, batch_tokens))
    model.train(was_training)
    count = sum(window.length - window.seen for window in windows)
    return BitsPerByte(nats / count, nats / math.log(2) / num_bytes, count, num_bytes)


def _windows(starts: np.ndarray, end: int, context: int, stride: int) -> list[_Window]:
    windows = []
    for start, next_start in zip(starts.tolist(), [*starts[1:].tolist(), end], strict=True):
        length = next_start - start - 1  # tokens of text; the same number is read, shifted by the separator
        windows += [_Window(start, min(length, context), 0)] if length else []
        for scored in range(context, length, stride):
            last = min(scored + stride, length)
            windows.append(_Window(start + last - context, context, context - (last - scored)))
    return windows


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    """Put windows of like length together, so that little is padded."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: window.length):
        if batch and (len(batch) + 1) * window.length > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _nats(model: PreTrainedModel, tokens: Tokens, batch: list[_Window], device: torch.device | str) -> float:
    # Padded on the right, where causal attention never looks from a token: no mask is needed.
    shape = (len(batch), batch[-1].length)
    inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
    for row, window in enumerate(batch):
        ids = tokens[window.start : window.start + window.length + 1]
        inputs[row, : window.length] = ids[:-1]
        targets[row, window.seen : window.length] = ids[1 + window.seen :]
    logits_BTV = model(input_ids=torch.from_numpy(inputs).to(device), use_cache=False).logits
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), torch.from_numpy(targets).flatten().to(device), reduction="none"
    )
    return losses.double().sum().item()
