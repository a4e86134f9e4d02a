"""Token shards on the disk: one stream of ids, memory-mapped, and where each document starts in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.stage.files import read_json


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

    def document(self, number: int) -> np.ndarray:
        """Return the tokens of a document, without the separators before and behind it."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.tokens) - 1
        return self.tokens[int(self.starts[number]) + 1 : int(end)]


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
