"""From clean documents to token shards: tokenize, then shuffle all documents of all sources, in bounded memory.

Tokenizing deals each document to the shard that a hash of its text names; shuffling orders one shard at a time by the
same hash. So the shards depend on the documents and the seed alone, not on tasks or workers, and are read in sequence.
datatrove's tokenizer is not used: text that spells a control token would become one, and it knows no held-out split.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep

from training.data.documents import fraction_of
from training.data.ledger import Ledger, note_cluster

BATCH_DOCUMENTS, BATCH_BYTES = 1000, 2**20  # tokenized at once: few, because encoded text is far larger
ORIGIN = ("id", "source", "license", "url", "language")  # what is kept of where a document came from
AT_ONCE = 10_000  # documents of a shard written together
ENTRY = np.dtype([("key", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
NOISE_SIGNS = ("\ufffd", "Ã", "â€", "<div", "</", "{{", "}}", "&nbsp;", "&amp;", "lorem ipsum")


class Tokenize(PipelineStep):
    """Tokenizes documents into parts: for each shard the tokens, an entry (key, lengths) and the origin of each."""

    type = "tokens"
    name = "tokenize"

    def __init__(
        self,
        folder: DataFolder,
        tokenizer: str,
        meta: dict[str, Any],
        weights: dict[str, float],
        ledger: Ledger,
    ) -> None:
        """Take the JSON of a `tokenizers.Tokenizer`; and from `meta` dtype, bos, shards, seed and val_fraction."""
        super().__init__()
        self.folder, self.tokenizer, self.meta = folder, tokenizer, meta
        self.weights, self.ledger = weights, ledger

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Write this task's part of every shard."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.encode_special_tokens = True  # what a document spells stays text
        parts = [Part(self.folder, shard, rank) for shard in shard_names(self.meta["shards"])]
        used = np.zeros(self.meta["vocab_size"], dtype=np.int64)
        for batch in self.batches(data):
            size = sum(document.metadata["bytes"] for document in batch)
            with self.ledger.timed("tokenize") as counts:
                encoded = tokenizer.encode_batch_fast([d.text for d in batch], add_special_tokens=False)
            counts.update({"documents_in": len(batch), "documents_out": len(batch)})
            counts.update({"bytes_in": size, "bytes_out": size})
            with self.ledger.timed("write"):
                rows = [np.array([self.meta["bos"], *one.ids], dtype=self.meta["dtype"]) for one in encoded]
                used += np.bincount(np.concatenate(rows), minlength=len(used))
                for document, ids in zip(batch, rows, strict=True):
                    self.deal(document, ids, parts)
        for part in parts:
            part.close()
        with self.folder.open(f"parts/vocabulary-{rank:05d}.npy", "wb") as file:
            np.save(file, used)
        self.ledger.save()

    def batches(self, data: DocumentsPipeline) -> Iterator[list[Document]]:
        """Yield documents a batch at a time."""
        batch: list[Document] = []
        size = 0
        for document in data:
            document.metadata["bytes"] = len(document.text.encode())
            batch.append(document)
            size += document.metadata["bytes"]
            if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def deal(self, document: Document, ids: np.ndarray, parts: list["Part"]) -> None:
        """Give a document to the held-out shard, or, as often as its source's weight says, to training shards."""
        origin, size = document.metadata, document.metadata["bytes"]
        source = origin["source"]
        held_out = fraction_of(document.text) < self.meta["val_fraction"]
        copies = 1 if held_out else self.copies(document.text, self.weights[source])
        if not copies:
            self.ledger.drop(document, "weight", size)
            return
        self.ledger.leave(source, size)
        self.note(document, len(ids), "val" if held_out else "train")
        for copy in range(copies):
            key = key_of(document.text, self.meta["seed"], copy)
            part = parts[0] if held_out else parts[1 + key % (len(parts) - 1)]
            part.write(key, ids, size, {"id": document.id, **origin})

    def copies(self, text: str, weight: float) -> int:
        """Return how often a training epoch holds a document: the weight, rounded up or down by the text's hash."""
        rest = weight - math.floor(weight)
        return math.floor(weight) + (key_of(text, self.meta["seed"], -1) / 2**64 < rest)

    def note(self, document: Document, tokens: int, split: str) -> None:
        """Count what the report shows of the documents that are kept."""
        tallies, text, metadata = self.ledger.tallies, document.text, document.metadata
        tallies["tokens by source"][metadata["source"]] += tokens
        tallies["documents by split"][split] += 1
        tallies["bytes by split"][split] += metadata["bytes"]
        tallies["documents by bytes"][str(2 ** max(0, metadata["bytes"] - 1).bit_length())] += 1
        tallies["documents by tokens"][str(2 ** max(0, tokens - 1).bit_length())] += 1
        tallies["documents by language"][metadata.get("language", "not identified")] += 1
        tallies["documents by license"][metadata["license"]] += 1
        signs = [sign for sign in NOISE_SIGNS if sign in text]
        tallies["documents with a sign of noise"].update(signs or ["none"])
        tallies["noise"]["documents"] += bool(signs)
        note_cluster(self.ledger, document, kept=True)


def key_of(text: str, seed: int, copy: int) -> int:
    """Return 64 bits that place a document, or a copy of it, in the shuffled order."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=struct.pack("<qq", seed, copy))
    return int.from_bytes(digest.digest(), "little")


def shard_names(count: int) -> list[str]:
    """Return the held-out shard and the training shards."""
    return ["val", *(f"train-{number:05d}" for number in range(count))]


class Part:
    """What one task gives to one shard; its files are there even if it gives nothing."""

    def __init__(self, folder: DataFolder, shard: str, rank: int) -> None:
        def opened(kind: str) -> IO[bytes]:
            return folder.open(f"parts/{shard}/{rank:05d}.{kind}", "wb")

        self.tokens, self.entries, self.origins = opened("tokens"), opened("entries"), opened("jsonl")

    def write(self, key: int, ids: np.ndarray, size: int, origin: dict[str, Any]) -> None:
        """Add a document."""
        self.tokens.write(ids.tobytes())
        self.entries.write(np.array([(key, len(ids), size)], dtype=ENTRY).tobytes())
        kept = {name: str(origin.get(name) or "") for name in ORIGIN}
        self.origins.write(json.dumps(kept).encode() + b"\n")

    def close(self) -> None:
        """Close the files."""
        for file in (self.tokens, self.entries, self.origins):
            file.close()


class Shuffle(PipelineStep):
    """Makes shard number `rank` of the parts that all tasks gave to it: the held-out one is number 0."""

    type = "tokens"
    name = "shuffle"

    def __init__(self, folder: DataFolder, meta: dict[str, Any], tasks: int) -> None:
        super().__init__()
        self.folder, self.meta, self.tasks = folder, meta, tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write NAME.bin, NAME.starts.npy, NAME.parquet with the documents' origins, and at last NAME.json."""
        with self.track_time():
            self.write_shard(shard_names(self.meta["shards"])[rank])

    def write_shard(self, name: str) -> None:
        """Put the documents of all parts in the order of their keys, between separators."""
        entries = np.frombuffer(self.gather(name, "entries"), dtype=ENTRY)
        order = np.argsort(entries["key"], kind="stable")
        lengths = entries["tokens"][order].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        self.write_tokens(name, entries["tokens"], order)
        with self.folder.open(f"shards/{name}.starts.npy", "wb") as file:
            np.save(file, starts)
        self.write_origins(name, order, starts, lengths)
        facts = {key: self.meta[key] for key in ("dtype", "vocab_size")} | {
            "documents": len(entries),
            "tokens": int(lengths.sum()) + 1,
            "bytes": int(entries["bytes"].sum(dtype=np.int64)),
        }
        with self.folder.open(f"shards/{name}.json", "wb") as file:
            file.write(json.dumps(facts).encode())

    def gather(self, name: str, kind: str) -> bytearray:
        """Return what all tasks gave to a shard."""
        content = bytearray()
        for task in range(self.tasks):
            with self.folder.open(f"parts/{name}/{task:05d}.{kind}", "rb") as file:
                content += file.read()
        return content

    def write_tokens(self, name: str, lengths: np.ndarray, order: np.ndarray) -> None:
        """Write the stream of a shard; its tokens are held once, and only here: they take most of the memory."""
        tokens = np.frombuffer(self.gather(name, "tokens"), dtype=self.meta["dtype"])
        ends = np.cumsum(lengths, dtype=np.int64)
        begins = ends - lengths
        with self.folder.open(f"shards/{name}.bin", "wb") as file:
            for first in range(0, len(order), AT_ONCE):
                some = order[first : first + AT_ONCE].tolist()
                file.write(np.concatenate([tokens[begins[i] : ends[i]] for i in some]).tobytes())
            file.write(np.array([self.meta["bos"]], dtype=self.meta["dtype"]).tobytes())

    def write_origins(self, name: str, order: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Write where each document of a shard came from, in the order of the shard."""
        import pyarrow
        import pyarrow.parquet

        text, number = pyarrow.string(), pyarrow.int64()
        schema = pyarrow.schema([*((key, text) for key in ORIGIN), ("start", number), ("tokens", number)])
        origins = self.gather(name, "jsonl").splitlines()
        with (
            self.folder.open(f"shards/{name}.parquet", "wb") as file,
            pyarrow.parquet.ParquetWriter(file, schema) as writer,
        ):
            for first in range(0, len(order), AT_ONCE):
                some = slice(first, first + AT_ONCE)
                rows = [json.loads(origins[i]) for i in order[some].tolist()]
                columns: dict[str, Any] = {key: [row[key] for row in rows] for key in ORIGIN}
                columns |= {"start": starts[some], "tokens": lengths[some]}
                writer.write_table(pyarrow.table(columns, schema=schema))
