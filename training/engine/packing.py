"""Packing: which documents share a row, so that little of it is padding and neighbours are unlike."""

import hashlib
import os
from pathlib import Path

import numpy as np

from training.engine.token_shards import Shards


def cut_documents(shards: Shards, context: int) -> np.ndarray:
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


LONG = 100_000  # pieces, from which packing takes seconds and is kept


def pack_once(
    pieces: np.ndarray, context: int, group: int, seed: int, folder: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `pack` does; of many pieces it is kept in the folder, and read from there at the next start.

    The file's name is a hash of all that decides its content, so another text or seed is never read by mistake.
    """
    if folder is None or len(pieces) < LONG:
        return pack(pieces, context, group, seed)
    decides = hashlib.sha256(np.ascontiguousarray(pieces).tobytes() + repr((context, group, seed)).encode())
    path = folder / f"packing-{decides.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return kept["pieces"], kept["begins"]
    packed, begins = pack(pieces, context, group, seed)
    beside = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")  # several processes may write at once
    np.savez(beside, pieces=packed, begins=begins)
    beside.replace(path)
    return packed, begins


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
