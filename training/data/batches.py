"""Rows of tokens for pretraining, read from memory-mapped shards in an order that is a function of the step alone.

Row k of the run is found from the seed and k, so a resumed run, or one on another number of processes, sees the
same rows without any state. Every token is seen once an epoch.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.stage import read_json

IGNORE = -100  # label of a position that carries no loss, as everywhere in the Hugging Face stack


@dataclass
class Shards:
    """One split of the data stage's output: the token stream (memory-mapped), its document starts and its size."""

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int
    vocab_size: int


def load_shards(folder: Path, split: str) -> Shards:
    """Open a split written by the stage `data`.

    Raises:
        ValueError: The folder holds no shards.
    """
    meta = read_json(folder / "meta.json")
    if not meta:
        raise ValueError(f"{folder} holds no token shards; run `python -m training.prepare_data` first.")
    tokens = np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r")
    return Shards(tokens, np.load(folder / f"{split}.starts.npy"), meta[split]["bytes"], meta["vocab_size"])


class EpochOrder:
    """The random order in which each epoch goes through `length` rows; only the current epoch's is held."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.epoch = -1

    def __call__(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row counted from the start of the run, and its index in the data."""
        epoch, position = divmod(row, self.length)
        if epoch != self.epoch:
            self.epoch, self.permutation = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return epoch, int(self.permutation[position])


Batch = dict[
    str, torch.Tensor
]  # input_ids, labels (already shifted) and, where packed, position_ids: (rows, context) int64


class Windows:
    """The stream cut into windows of `context` tokens, wherever documents end; the cut moves with each epoch."""

    def __init__(self, shards: Shards, context: int, seed: int) -> None:
        self.tokens, self.context, self.seed = shards.tokens, context, seed
        rows_per_epoch = (len(self.tokens) - 1) // context - 1
        if rows_per_epoch < 1:
            raise ValueError(
                f"context_length={context} is longer than half of the {len(self.tokens):,} training tokens; "
                f"use context_length={max(1, len(self.tokens) // 8)} or less, or give more text."
            )
        self.order = EpochOrder(seed, rows_per_epoch)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run."""
        starts = [self._start(int(row)) for row in rows]
        window = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        ids = torch.from_numpy(window)
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].contiguous()}

    def _start(self, row: int) -> int:
        epoch, index = self.order(row)
        shift = int(np.random.default_rng((self.seed, epoch, 1)).integers(self.context))
        return shift + index * self.context


class PackedDocuments:
    """Whole documents, several to a row of `context` tokens, each blind to the others.

    A document is shown from its separator to the next one, so that its first token and its end are learnt. Positions
    begin again at 0 with each document, which the model takes as the borders of its attention mask; a longer document
    is cut. Rows are filled first-fit by decreasing length (Johnson 1973) within groups of documents.
    """

    GROUP = 4096  # documents packed together: enough to fill rows to about 99 %

    def __init__(self, shards: Shards, context: int, seed: int) -> None:
        self.tokens, self.context, self.seed = shards.tokens, context, seed
        self.rows = pack(pieces(shards, context), context, self.GROUP, seed)
        self.order = EpochOrder(seed, len(self.rows))

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run."""
        shape = (len(rows), self.context)
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        for i, row in enumerate(rows):
            at = 0
            for start, length in self.rows[self.order(int(row))[1]]:
                ids[i, at : at + length] = self.tokens[start : start + length]
                labels[i, at : at + length] = self.tokens[start + 1 : start + 1 + length]
                positions[i, at : at + length] = np.arange(length)
                at += length
            # Padding is one more document: it must not start at a position that continues the last one.
            positions[i, at:] = np.arange(self.context - at)
        used = int((labels != IGNORE).any(0).nonzero()[0].max()) + 1
        return {
            "input_ids": torch.from_numpy(ids[:, :used]),
            "position_ids": torch.from_numpy(positions[:, :used]),
            "labels": torch.from_numpy(labels[:, :used]).contiguous(),
        }


class Ahead:
    """Reads the batches of the next step in a thread, into pinned memory, while a GPU works on those of this one."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)  # one, because the order of rows is not made for several
        self.next: tuple[list[list[int]], Future[list[Batch]]] | None = None

    def __call__(
        self, rows: Windows | PackedDocuments, pieces: list[np.ndarray], next_pieces: list[np.ndarray]
    ) -> list[Batch]:
        """Return the batches of these rows, read already if they were announced, and begin with the next ones."""
        numbers = [piece.tolist() for piece in pieces]
        announced = self.next if self.next is not None and self.next[0] == numbers else None
        future = announced[1] if announced else self.thread.submit(self._read, rows, pieces)
        batches = future.result()
        next_numbers = [piece.tolist() for piece in next_pieces]
        self.next = next_numbers, self.thread.submit(self._read, rows, next_pieces)
        return batches

    @staticmethod
    def _read(rows: Windows | PackedDocuments, pieces: list[np.ndarray]) -> list[Batch]:
        batches = [rows.batch(piece) for piece in pieces]
        if torch.cuda.is_available():
            batches = [{key: tensor.pin_memory() for key, tensor in batch.items()} for batch in batches]
        return batches


def pieces(shards: Shards, context: int) -> np.ndarray:
    """Return (start, length) of every document, those longer than `context` in pieces, (n, 2) int64."""
    ends = np.append(shards.starts[1:], len(shards.tokens) - 1)
    cut = [
        (start, min(context, end - start))
        for first, end in zip(shards.starts.tolist(), ends.tolist(), strict=True)
        for start in range(first, end, context)
    ]
    return np.array(cut, dtype=np.int64)


def pack(pieces: np.ndarray, context: int, group: int, seed: int) -> list[list[tuple[int, int]]]:
    """Put (start, length) pieces into rows of at most `context` tokens."""
    order = np.random.default_rng((seed, 2)).permutation(len(pieces))
    rows: list[list[tuple[int, int]]] = []
    for begin in range(0, len(order), group):
        chosen = pieces[order[begin : begin + group]]
        by_room: dict[int, list[list[tuple[int, int]]]] = {}
        for start, length in chosen[np.argsort(-chosen[:, 1], kind="stable")].tolist():
            room = next((room for room in range(length, context + 1) if by_room.get(room)), context)
            row = by_room[room].pop() if by_room.get(room) else []
            if not row:
                rows.append(row)
            row.append((start, length))
            by_room.setdefault(room - length, []).append(row)
    return rows
