"""How documents are divided: trained on or held out, and into batches.

A document's split follows from its content, so it never changes when data is added.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

DataSplit = Literal["train", "val"]
Sized = TypeVar("Sized")

BATCH_DOCUMENTS, BATCH_BYTES = 1000, 2**20  # tokenized at once: few, because encoded text is far larger


def check_val_fraction(val_fraction: float) -> None:
    """Raise ValueError if nothing would be held out, or everything."""
    if not 0 < val_fraction < 1:
        raise ValueError(
            f"val_fraction={val_fraction:g} must be above 0 and below 1: the model is judged on text that it has not "
            "seen; use for example 0.01."
        )


def cut_at_end(text: str, val_fraction: float) -> tuple[str, str]:
    """Return a text without its end, and the end, which is held out."""
    cut = int(len(text) * (1 - val_fraction))
    return text[:cut], text[cut:]


def fraction_of(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone; below `val_fraction` the text is held out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def cut_batches(documents: Iterable[Sized], size_of: Callable[[Sized], int]) -> Iterator[list[Sized]]:
    """Yield documents a batch at a time: `BATCH_DOCUMENTS`, or fewer that together have `BATCH_BYTES`."""
    batch: list[Sized] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += size_of(document)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
