"""Rows of tokens for pretraining, read from memory-mapped shards in an order that is a function of the step alone.

Row k of the run is found from the seed and k, so a resumed run, or one on another number of processes, sees the
same rows without any state. Every token is seen once an epoch.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from training.stage.files import read_json

IGNORE = -100  # label of a position that carries no loss, as everywhere in the Hugging Face stack


class Joined:
    """Memory-mapped token streams (N,) read as one; each ends with a separator, of which the last one stays."""

    def __init__(self, streams: Sequence["np.ndarray | Joined"]) -> None:
        self.streams = streams
        lengths = [len(stream) - 1 for stream in streams[:-1]] + [len(streams[-1])]
        self.begins = np.cumsum([0, *lengths])
        self.dtype: np.dtype = streams[0].dtype

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """Return the tokens of a slice without step; it may cross from one stream into the next."""
        start, stop, _ = wanted.indices(len(self))
        found = []
        for i in range(int(np.searchsorted(self.begins, start, side="right")) - 1, len(self.streams)):
            begin, end = int(self.begins[i]), int(self.begins[i + 1])
            if begin >= stop:
                break
            found.append(self.streams[i][max(0, start - begin) : min(stop, end) - begin])
        return found[0] if len(found) == 1 else np.concatenate(found or [np.empty(0, self.dtype)])


Tokens = np.ndarray | Joined


@dataclass
class Shards:
    """One split of the data stage's output: the token stream (memory-mapped), its document starts and its size."""

    tokens: Tokens
    starts: np.ndarray
    num_bytes: int
    vocab_size: int
    tokenizer: str | None = None  # hash of what made the ids (hf_scratch.token_ids); None in shards older than it


def load_shards(folder: Path, split: str) -> Shards:
    """Open a split written by the stage `data`.

    Raises:
        ValueError: The folder holds no shards.
    """
    meta = read_json(folder / "meta.json")
    if not meta:
        raise ValueError(f"{folder} holds no token shards; run `python -m training.prepare_data` first.")
    names = meta[split].get("shards", [split])
    parts = [
        Shards(
            np.memmap(folder / f"{name}.bin", dtype=meta["dtype"], mode="r"),
            np.load(folder / f"{name}.starts.npy"),
            0,
            meta["vocab_size"],
            meta.get("tokenizer_sha256"),
        )
        for name in names
    ]
    joined = join_shards(parts)
    joined.num_bytes = meta[split]["bytes"]
    return joined


def join_shards(parts: list[Shards]) -> Shards:
    """Return shards as one.

    Raises:
        ValueError: They were made by different tokenizers.
    """
    if len(parts) == 1:
        return parts[0]
    sizes = {part.vocab_size for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"the data was made by tokenizers of {sorted(sizes)} tokens; prepare all of it with one.")
    made_by = {part.tokenizer for part in parts}
    if len(made_by - {None}) > 1:
        raise ValueError("the data was made by different tokenizers of the same size; prepare all of it with one.")
    tokens = Joined([part.tokens for part in parts])
    starts = np.concatenate([part.starts + begin for part, begin in zip(parts, tokens.begins, strict=False)])
    known = made_by.pop() if len(made_by) == 1 else None
    return Shards(tokens, starts, sum(part.num_bytes for part in parts), parts[0].vocab_size, known)


class EpochOrder:
    """The random order in which each epoch goes through `length` rows; only the newest `held` epochs' are held."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.held = 1
        self.permutations: dict[int, np.ndarray] = {}

    def __call__(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row counted from the start of the run, and its index in the data."""
        epoch, position = divmod(row, self.length)
        if epoch not in self.permutations:
            while len(self.permutations) >= self.held:
                del self.permutations[min(self.permutations)]
            self.permutations[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return epoch, int(self.permutations[epoch][position])


Batch = dict[
    str, torch.Tensor
]  # input_ids, labels (already shifted) and, where packed, position_ids: (rows, context) int64


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
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].contiguous()}

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
        self.pieces, self.begins = pack(pieces(shards, context), context, self.GROUP, seed)
        self.order = EpochOrder(seed, len(self.begins) - 1)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run."""
        shape = (len(rows), self.context)
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        for i, row in enumerate(rows):
            at = 0
            index = self.order(int(row))[1]
            for start, length in self.pieces[self.begins[index] : self.begins[index + 1]].tolist():
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

    def __call__(self, rows: Rows, pieces: list[np.ndarray], next_pieces: list[np.ndarray]) -> list[Batch]:
        """Return the batches of these rows, read already if they were announced, and begin with the next ones."""
        numbers = [piece.tolist() for piece in pieces]
        announced = self.next if self.next is not None and self.next[0] == numbers else None
        future = announced[1] if announced else self.thread.submit(self._read, rows, pieces)
        batches = future.result()
        next_numbers = [piece.tolist() for piece in next_pieces]
        self.next = next_numbers, self.thread.submit(self._read, rows, next_pieces)
        return batches

    @staticmethod
    def _read(rows: Rows, pieces: list[np.ndarray]) -> list[Batch]:
        batches = [rows.batch(piece) for piece in pieces]
        if torch.cuda.is_available():
            batches = [{key: tensor.pin_memory() for key, tensor in batch.items()} for batch in batches]
        return batches


def pieces(shards: Shards, context: int) -> np.ndarray:
    """Return (start, length) of every document, those longer than `context` in pieces, (n, 2) int64."""
    lengths = np.diff(shards.starts, append=len(shards.tokens) - 1)
    counts = -(-lengths // context)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its document
    return np.stack(
        [
            np.repeat(shards.starts, counts) + number * context,
            np.minimum(context, np.repeat(lengths, counts) - number * context),
        ],
        axis=1,
    )


def pack(pieces: np.ndarray, context: int, group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put (start, length) pieces into rows of at most `context` tokens, each where it leaves the least room.

    Returns:
        The pieces (n, 2) in the order of their rows, and where each row begins among them, (rows + 1,) int64.
    """
    random = np.random.default_rng((seed, 2))
    order = random.permutation(len(pieces))
    packed: list[np.ndarray] = []
    sizes: list[int] = []
    for begin in range(0, len(order), group):
        chosen = pieces[order[begin : begin + group]]
        rows: list[list[tuple[int, int]]] = []
        by_room: dict[int, list[list[tuple[int, int]]]] = {}
        roughly = chosen[:, 1] + random.normal(0, context / 8, len(chosen))
        for start, length in chosen[np.argsort(-roughly, kind="stable")].tolist():
            room = next((room for room in range(length, context + 1) if by_room.get(room)), context)
            row = by_room[room].pop() if by_room.get(room) else []
            if not row:
                rows.append(row)
            row.append((start, length))
            by_room.setdefault(room - length, []).append(row)
        packed.append(np.array([piece for row in rows for piece in row], dtype=np.int64))
        sizes += map(len, rows)
    return np.concatenate(packed), np.cumsum([0, *sizes])
