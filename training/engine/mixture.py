"""What pretraining reads: one folder of shards, several by weight, or shards that come one after the other.

    --data runs/mine/data                      all of it, memory-mapped
    --data runs/web/data runs/code/data=2.5    an epoch goes once through the first and two and a half times the second
    --data hf://datasets/user/shards           a shard at a time, from any address that fsspec knows (file:// too)

In each case row k of the run follows from the seed and k alone: there is no state to save, and any number of processes
reads the same rows.
"""

import json
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.engine.batches import IGNORE, Batch, EpochOrder, PackedDocuments, Rows, Windows
from training.engine.token_shards import Shards, join_shards, load_shards

POLL_SECONDS = 1.0  # between looks for a shard that is not written yet


def open_data(entries: list[str], context: int, seed: int, packed: bool) -> tuple[Rows, Shards]:
    """Open the training rows and the held-out text of `--data`.

    Args:
        entries: Folders, FOLDER=WEIGHT, or one URL.
        context: Tokens of a row.
        seed: Seed of the order.
        packed: Whole documents that do not see each other in place of windows of the stream.

    Raises:
        ValueError: No shards, a weight that is no positive number, or what cannot be streamed.
    """
    if "://" in entries[0]:
        if len(entries) > 1 or packed:
            raise ValueError(
                f"{entries[0]} is streamed a shard at a time, which neither mixes with other data nor packs text; "
                "download it, or give this one alone with pack_documents=false."
            )
        streamed = StreamedWindows(entries[0], context, seed)
        return streamed, streamed.held_out()
    folders, weights = zip(*map(_split, entries), strict=True)
    readers: list[PackedDocuments | Windows] = []
    for folder in folders:
        shards = load_shards(Path(folder), "train")
        readers.append(PackedDocuments(shards, context, seed) if packed else Windows(shards, context, seed))
    held_out = join_shards([load_shards(Path(folder), "val") for folder in folders])
    return (readers[0] if len(readers) == 1 else Mixture(readers, list(weights), seed)), held_out


def held_out_by_folder(entries: list[str]) -> dict[str, Shards]:
    """Return the held-out text of each folder by itself; none of a URL, which is the only one."""
    if "://" in entries[0]:
        return {}
    return {folder: load_shards(Path(folder), "val") for folder, _ in map(_split, entries)}


def data_inputs(entries: list[str]) -> dict[str, str | list[str] | None]:
    """Return what `--data` adds to the inputs of a stage: the folders by content, and their weights, if any."""
    folders, weights = zip(*map(_split, entries), strict=True)
    if len(folders) == 1:
        return {"data": folders[0]}
    return {"data": list(folders), "weights": " ".join(map(str, weights))}


def _split(entry: str) -> tuple[str, float]:
    folder, sign, weight = entry.rpartition("=")
    if not sign or "://" in entry or Path(entry).is_dir():
        return entry, 1.0  # a folder may have an equals sign in its name
    try:
        value = float(weight)
    except ValueError:
        return entry, 1.0
    if not 0 < value < math.inf:
        raise ValueError(f"--data {entry}: the weight must be a number above 0.")
    return folder, value


class Mixture:
    """Rows of several sources in one random order; an epoch goes through each as often as its weight says.

    A source of weight 1/2 shows one half of its rows in one epoch and the other half in the next.
    """

    def __init__(self, readers: Sequence[PackedDocuments | Windows], weights: list[float], seed: int) -> None:
        self.readers = readers
        self.shares = [max(1, round(weight * r.order.length)) for r, weight in zip(readers, weights, strict=True)]
        self.ends = np.cumsum(self.shares)
        self.order = EpochOrder(seed, int(self.ends[-1]))
        for reader, weight in zip(readers, weights, strict=True):
            reader.order.max_epochs = math.ceil(weight) + 1  # rows of several passes stand next to each other

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, ordered by source."""
        wanted: list[list[int]] = [[] for _ in self.readers]
        for row in rows:
            epoch, place = self.order(int(row))
            source = int(np.searchsorted(self.ends, place, side="right"))
            share = self.shares[source]
            wanted[source].append(epoch * share + place - (int(self.ends[source]) - share))
        found = [r.batch(np.array(numbers)) for r, numbers in zip(self.readers, wanted, strict=True) if numbers]
        return stack(found)


def stack(batches: list[Batch]) -> Batch:
    """Return batches as one, padded to the widest by tokens without loss that begin a document of their own."""
    width = max(batch["labels"].shape[1] for batch in batches)
    padded = []
    for batch in batches:
        room = width - batch["labels"].shape[1]
        fill = {"input_ids": 0, "labels": IGNORE}
        new = {key: torch.nn.functional.pad(batch[key], (0, room), value=value) for key, value in fill.items()}
        if "position_ids" in batch:
            tail = torch.arange(room).expand(len(batch["position_ids"]), room)
            new["position_ids"] = torch.cat([batch["position_ids"], tail], dim=1)
        padded.append(new)
    return {key: torch.cat([batch[key] for batch in padded]) for key in padded[0]}


class StreamedWindows:
    """Windows of shards that lie elsewhere, or are still being written: shard after shard, shuffled within each.

    The shards themselves are a random sample of all documents each, so this is close to one order over all. The shard
    that is read and the one after it are on this machine. A shard that is not there yet is waited for.
    """

    def __init__(self, url: str, context: int, seed: int) -> None:
        from fsspec.core import url_to_fs

        self.fs, self.root = url_to_fs(url.rstrip("/"))
        self.url, self.context, self.seed = url, context, seed
        self.cache = Path(tempfile.mkdtemp(prefix="shards-"))
        weakref.finalize(self, shutil.rmtree, self.cache, ignore_errors=True)
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.facts: list[dict[str, Any]] = []  # of each shard known so far
        self.begins = [0]  # first row of each shard in an epoch, and the end of the last one
        self.complete = False
        self.coming: dict[int, Future[Windows]] = {}

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, counted from the start of the run; waits for what is not there yet."""
        return stack([self._row(int(row)) for row in rows])

    def held_out(self) -> Shards:
        """Return the held-out text."""
        facts = self._wait_for("val.json")
        for kind in (".bin", ".starts.npy"):
            self.fs.get_file(f"{self.root}/val{kind}", str(self.cache / f"val{kind}"))
        tokens = np.memmap(self.cache / "val.bin", dtype=facts["dtype"], mode="r")
        starts = np.load(self.cache / "val.starts.npy")
        return Shards(tokens, starts, facts["bytes"], facts["vocab_size"], facts.get("tokenizer_sha256"))

    def _row(self, row: int) -> Batch:
        while not self.complete and row >= self.begins[-1]:
            self._learn_next()
        if not self.begins[-1]:
            raise ValueError(f"no shard of {self.url} is twice as long as a row of {self.context} tokens.")
        epoch, place = divmod(row, self.begins[-1]) if self.complete else (0, row)
        shard = int(np.searchsorted(self.begins, place, side="right")) - 1
        length = self.begins[shard + 1] - self.begins[shard]
        return self._open(shard).batch(np.array([epoch * length + place - self.begins[shard]]))

    def _learn_next(self) -> None:
        """Wait for the next shard and count its rows, or find that there is none."""
        name = f"train-{len(self.facts):05d}.json"
        if self.fs.exists(f"{self.root}/meta.json") and not self.fs.exists(f"{self.root}/{name}"):
            self.complete = True
            return
        facts = self._wait_for(name)
        self.facts.append(facts)
        self.begins.append(self.begins[-1] + max(0, (facts["tokens"] - 1) // self.context - 1))

    def _wait_for(self, name: str) -> dict[str, Any]:
        waited = False
        while True:
            try:
                return json.loads(self.fs.cat_file(f"{self.root}/{name}"))
            except (FileNotFoundError, json.JSONDecodeError):
                # It is not there, or half of it is. Finished data that lacks it will never have it.
                if self.fs.exists(f"{self.root}/meta.json"):
                    raise ValueError(f"{self.url} holds no {name}; it is no folder of published shards.") from None
            if not waited:
                print(f"waiting for {name} of {self.url}", flush=True)
                waited = True
            self.fs.invalidate_cache()
            time.sleep(POLL_SECONDS)

    def _open(self, shard: int) -> Windows:
        if shard not in self.coming and shard + 1 == len(self.facts) and not self.complete:
            if self.fs.exists(f"{self.root}/train-{shard + 1:05d}.json"):
                self._learn_next()
        for number in (shard, shard + 1):
            known = number < len(self.facts) and self.begins[number + 1] > self.begins[number]
            if known and number not in self.coming:
                self.coming[number] = self.pool.submit(self._fetch, number)
        for old in [number for number in self.coming if number not in (shard - 1, shard, shard + 1)]:
            self.coming.pop(old).cancel()
            (self.cache / f"{old}.bin").unlink(missing_ok=True)
        return self.coming[shard].result()

    def _fetch(self, shard: int) -> Windows:
        facts, path = self.facts[shard], self.cache / f"{shard}.bin"
        self.fs.get_file(f"{self.root}/train-{shard:05d}.bin", str(path))
        tokens = np.memmap(path, dtype=facts["dtype"], mode="r")
        shards = Shards(tokens, np.empty(0, np.int64), facts["bytes"], facts["vocab_size"])
        return Windows(shards, self.context, self.seed + shard)
