"""Rows of tokens for pretraining, read from memory-mapped shards in an order that is a function of the step alone.

Row k of the run is found from the seed and k, so a resumed run, or one on another number of processes, sees the
same rows without any state. Every token is seen once an epoch.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import nn

from training.engine.packing import cut_documents, pack
from training.engine.token_shards import Shards

IGNORE = -100  # label of a position that carries no loss, as everywhere in the Hugging Face stack


class EpochOrder:
    """The random order in which each epoch goes through `length` rows; only the newest `max_epochs` are kept."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.max_epochs = 1
        self.permutations: dict[int, np.ndarray] = {}

    def __call__(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row counted from the start of the run, and its index in the data."""
        epoch, position = divmod(row, self.length)
        if epoch not in self.permutations:
            while len(self.permutations) >= self.max_epochs:
                del self.permutations[min(self.permutations)]
            self.permutations[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return epoch, int(self.permutations[epoch][position])


# input_ids, labels (already shifted) and, where documents are packed, position_ids: (rows, context) int64, each
# contiguous: pinning copies a part of another tensor once more.
Batch = dict[str, torch.Tensor]


class Rows(Protocol):
    """Rows of tokens by number, counted from the start of the run."""

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers."""
        ...


class Windows:
    """The stream cut into windows of `context` tokens, wherever documents end; the cut moves with each epoch."""

    def __init__(self, shards: Shards, context: int, seed: int) -> None:
        self.tokens, self.context, self.seed = shards.tokens, context, seed
        rows_per_epoch = (len(self.tokens) - 1) // context - 1
        if rows_per_epoch < 1:
            raise ValueError(
                f"a row of {context} tokens is longer than half of the {len(self.tokens):,} training tokens; use "
                f"row_length={max(1, len(self.tokens) // 8)} or less, or give more text."
            )
        self.order = EpochOrder(seed, rows_per_epoch)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run."""
        starts = [self._start(int(row)) for row in rows]
        window = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        ids = torch.from_numpy(window)
        return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    def _start(self, row: int) -> int:
        epoch, index = self.order(row)
        shift = int(np.random.default_rng((self.seed, epoch, 1)).integers(self.context))
        return shift + index * self.context


class PackedDocuments:
    """Whole documents, several to a row of `context` tokens, each blind to the others.

    A document is shown from its separator to the next one, so that its first token and its end are learnt. Positions
    begin again at 0 with each document, which the model takes as the borders of its attention mask; a longer document
    is cut, and no other. Rows are filled best-fit (Johnson 1973) within groups of documents, from long to short but
    for some noise, without which documents of a row would be of like length, and so of like kind.
    """

    GROUP = 4096  # documents packed together: enough to fill rows to about 99 %

    def __init__(self, shards: Shards, context: int, seed: int) -> None:
        self.tokens, self.context, self.seed = shards.tokens, context, seed
        self.documents, self.begins = pack(cut_documents(shards, context), context, self.GROUP, seed)
        self.order = EpochOrder(seed, len(self.begins) - 1)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run."""
        shape = (len(rows), self.context)
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        for i, row in enumerate(rows):
            at = 0
            index = self.order(int(row))[1]
            for start, length in self.documents[self.begins[index] : self.begins[index + 1]].tolist():
                ids[i, at : at + length] = self.tokens[start : start + length]
                labels[i, at : at + length] = self.tokens[start + 1 : start + 1 + length]
                positions[i, at : at + length] = np.arange(length)
                at += length
            # Padding is one more document: it must not start at a position that continues the last one.
            positions[i, at:] = np.arange(self.context - at)
        used = int((labels != IGNORE).any(0).nonzero()[0].max()) + 1
        return {
            "input_ids": torch.from_numpy(ids[:, :used]).contiguous(),
            "position_ids": torch.from_numpy(positions[:, :used]).contiguous(),
            "labels": torch.from_numpy(labels[:, :used]).contiguous(),
        }


def fill_rows(batch: Batch, length: int) -> Batch:
    """Return a batch whose rows have this length again: each new shape would be compiled anew."""
    missing = length - batch["labels"].shape[1]
    if not missing:
        return batch
    filled = {key: nn.functional.pad(tensor, (0, missing)) for key, tensor in batch.items()}
    filled["labels"][:, -missing:] = IGNORE
    # As in `PackedDocuments`: one more document, which may be a second one of padding.
    filled["position_ids"][:, -missing:] = torch.arange(missing)
    return filled


class ReadAhead:
    """Reads the batches of the next step in a thread, into pinned memory, while a GPU works on those of this one."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)  # one: `EpochOrder` is not made for several
        self.next: tuple[list[list[int]], Future[list[Batch]]] | None = None

    def __call__(self, rows: Rows, numbers: list[np.ndarray], next_numbers: list[np.ndarray]) -> list[Batch]:
        """Return a batch for each list of row numbers, read already where announced, and begin with the next ones."""
        wanted = [batch.tolist() for batch in numbers]
        announced = self.next if self.next is not None and self.next[0] == wanted else None
        future = announced[1] if announced else self.thread.submit(self._read, rows, numbers)
        batches = future.result()
        self.next = [batch.tolist() for batch in next_numbers], self.thread.submit(self._read, rows, next_numbers)
        return batches

    @staticmethod
    def _read(rows: Rows, numbers: list[np.ndarray]) -> list[Batch]:
        batches = [rows.batch(batch) for batch in numbers]
        if torch.cuda.is_available():
            batches = [{key: tensor.pin_memory() for key, tensor in batch.items()} for batch in batches]
        return batches
