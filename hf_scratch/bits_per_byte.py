"""Held-out bits per byte: how many bits a model needs for each byte of text, whatever its tokenizer.

Pretraining, evaluation and exports call this one function, so that their numbers can be compared. A document longer
than the context is read through a sliding window, in which each token is predicted from at least `context - stride`
tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .tokenizer import encode_texts, separator_of

LOGITS = 2**25  # of a batch: 128 MiB in float32
GPU_LOGITS = 2**28  # 1 GiB: windows enough to keep a GPU busy


class Tokens(Protocol):
    """A stream (N,) of token ids, in memory or on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Text:
    """Documents as a token stream: separator, document, ..., separator; and the bytes (documents,) of each."""

    tokens: Tokens
    starts: np.ndarray
    num_bytes: np.ndarray


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Text:
    """Encode documents with a model's own tokenizer, separated by what the model knows to begin a text.

    Raises:
        ValueError: The tokenizer has no token to begin a text with.
    """
    separator = separator_of(tokenizer)
    sequences = [[separator, *ids] for ids in encode_texts(tokenizer, texts)]
    starts = np.cumsum([0, *(len(ids) for ids in sequences[:-1])])
    tokens = np.array([token for ids in [*sequences, [separator]] for token in ids])
    return Text(tokens, starts, np.array([len(text.encode()) for text in texts]))


@dataclass(frozen=True)
class BitsPerByte:
    """What a model needs for a text: nats a token, bits a byte, and how much text that was measured on."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


def default_batch_tokens(vocab_size: int, device: str = "cpu") -> int:
    """Return the tokens to score at once, so that their logits do not need more memory than training does.

    Args:
        vocab_size: Logits of a token.
        device: Type of the device, as `cuda`.
    """
    return min(32768, GPU_LOGITS // vocab_size) if device == "cuda" else min(8192, LOGITS // vocab_size)


@dataclass(frozen=True)
class _Window:
    """Tokens `start .. start + length` are read; the loss of the first `seen` was counted by the window before."""

    document: int
    start: int
    length: int
    seen: int


def bits_per_byte(
    model: PreTrainedModel,
    tokens: Tokens,
    starts: np.ndarray,
    num_bytes: int,
    context: int,
    device: torch.device | str,
    batch_tokens: int | None = None,
    stride: int | None = None,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda nats: nats,
) -> BitsPerByte:
    """Score documents: the sum over their text tokens of -ln p(token | document so far), in bits for each byte.

    The separator before a document is its first context and no text; the one behind it is not scored.

    Args:
        model: A causal language model; its train or eval mode is left as it was.
        tokens: The stream (N,) of ids: separator, document, separator, document, ..., separator.
        starts: Position (documents,) of each document's separator, ascending.
        num_bytes: UTF-8 bytes of these documents.
        context: Longest input in tokens.
        batch_tokens: Tokens of a batch, padding included; one window at least. The result does not depend on it. None
            takes as many as `default_batch_tokens` says of the device.
        stride: How far the window moves on in a document longer than `context`; None means half of it.
        share: Which part of the batches this process scores, and into how many parts they go.
        add_up: Sums a tensor over the processes.

    Raises:
        ValueError: No text, or a stride that would leave tokens out.
    """
    if num_bytes <= 0:
        raise ValueError(
            f"there is no text to score ({len(starts)} documents, {num_bytes} bytes); give held-out text."
        )
    nats = document_nats(model, tokens, starts, context, device, batch_tokens, stride, share, add_up)
    return in_bits(nats, tokens, num_bytes)


def in_bits(nats: np.ndarray, tokens: Tokens, num_bytes: int) -> BitsPerByte:
    """Return what documents with these nats need in all; their stream `tokens` ends with one more separator."""
    count, total = len(tokens) - len(nats) - 1, float(nats.sum())
    return BitsPerByte(total / count, total / math.log(2) / num_bytes, count, num_bytes)


@torch.no_grad()
def document_nats(
    model: PreTrainedModel,
    tokens: Tokens,
    starts: np.ndarray,
    context: int,
    device: torch.device | str,
    batch_tokens: int | None = None,
    stride: int | None = None,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda nats: nats,
) -> np.ndarray:
    """Return the nats (documents,) that the model needs for each document; see `bits_per_byte`."""
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride} must be between 1 and the context of {context} tokens.")
    windows = _windows(starts, len(tokens) - 1, context, stride)
    if not windows:
        raise ValueError(f"there is no text to score ({len(starts)} documents); give held-out text.")
    was_training = model.training
    model.eval()
    batch_tokens = batch_tokens or default_batch_tokens(model.config.vocab_size, torch.device(device).type)
    batches = list(_batches(windows, batch_tokens))
    nats = torch.zeros(len(starts), dtype=torch.float64)
    for batch in batches[share[0] :: share[1]]:
        documents = torch.tensor([window.document for window in batch])
        nats.index_add_(0, documents, _nats(model, tokens, batch, device))
    if share[0] >= len(batches) % share[1] > 0:
        # A sharded model computes on all processes at once: one with a batch less reads another that does not count.
        _nats(model, tokens, batches[0], device)
    nats = add_up(nats)
    model.train(was_training)
    return nats.cpu().numpy()  # the processes add up on their devices


def _windows(starts: np.ndarray, end: int, context: int, stride: int) -> list[_Window]:
    windows = []
    ends = [*starts[1:].tolist(), end]
    for document, (start, next_start) in enumerate(zip(starts.tolist(), ends, strict=True)):
        length = next_start - start - 1  # tokens of text; the same number is read, shifted by the separator
        windows += [_Window(document, start, min(length, context), 0)] if length else []
        for scored in range(context, length, stride):
            last = min(scored + stride, length)
            windows.append(_Window(document, start + last - context, context, context - (last - scored)))
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


def _nats(model: PreTrainedModel, tokens: Tokens, batch: list[_Window], device: torch.device | str) -> torch.Tensor:
    """Return the nats (windows,) of the tokens that each window scores."""
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
    return losses.view(shape).cpu().double().sum(dim=1)
