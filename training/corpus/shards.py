"""From clean documents to token shards: tokenize, then shuffle all documents of all sources, in bounded memory.

Tokenizing deals each document to the shard that a hash of its text names; shuffling orders one shard at a time by the
same hash. So the shards depend on the documents and the seed alone, not on tasks or workers, and are read in sequence.
datatrove's tokenizer is not used: text that spells a control token would become one, and it knows no held-out split.
"""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep

from training.corpus.ledger import SPLITS, Ledger, add_up, note_cluster
from training.corpus.split import cut_at_end, cut_batches, fraction_of
from training.corpus.works import REPORT

PART_BYTES = 2**25  # that a task holds before it writes them
KINDS = ("tokens", "entries", "jsonl")  # files of a part: ids, an ENTRY and the ORIGIN of each document
ORIGIN = ("id", "source", "license", "url", "language")  # what is kept of where a document came from
AT_ONCE = 10_000  # documents of a shard written together
ENTRY = np.dtype([("key", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
NOISE_SIGNS = ("\ufffd", "Ã", "â€", "<div", "</", "{{", "}}", "&nbsp;", "&amp;", "lorem ipsum", "Project Gutenberg")


@dataclass
class Portion:
    """What of a document goes to one split: all of it, but where documents are so few that each is cut."""

    text: str
    held_out: bool
    ids: np.ndarray = field(default_factory=lambda: np.empty(0))


class Tokenize(PipelineStep):
    """Tokenizes documents into parts, one of each task for each shard."""

    type = "tokens"
    name = "tokenize"

    def __init__(
        self, folder: DataFolder, tokenizer: str, meta: dict[str, Any], weights: dict[str, float], ledger: Ledger
    ) -> None:
        """Take a `tokenizers.Tokenizer` as JSON, and from `meta` dtype, separator, shards, seed and val_fraction."""
        super().__init__()
        self.folder, self.tokenizer, self.meta = folder, tokenizer, meta
        self.weights, self.ledger = weights, ledger
        self.cut = False

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Write this task's part of every shard."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.encode_special_tokens = True  # what a document spells stays text
        parts = Parts(self.folder, 1 + self.meta["shards"], rank)
        self.cut = len(add_up(self.folder, "clean")["tallies"].get(SPLITS, {})) < 2
        if self.folder.isfile(REPORT):
            self.cut = json.loads(self.folder.cat_file(REPORT))["groups"] < 2
        used = np.zeros(self.meta["vocab_size"], dtype=np.int64)
        for batch in cut_batches(measured(data), lambda document: document.metadata["bytes"]):
            size = sum(document.metadata["bytes"] for document in batch)
            portions = [self.portions(document) for document in batch]
            with self.ledger.timed("tokenize") as counts:
                texts = [portion.text for some in portions for portion in some]
                encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            counts.update({"documents_in": len(batch), "documents_out": len(batch)})
            counts.update({"bytes_in": size, "bytes_out": size})
            with self.ledger.timed("write"):
                for portion in itertools.chain(*portions):
                    portion.ids = np.array([self.meta["separator"], *next(encoded).ids], dtype=self.meta["dtype"])
                every = np.concatenate([portion.ids for some in portions for portion in some])
                used += np.bincount(every, minlength=len(used))
                for document, some in zip(batch, portions, strict=True):
                    self.deal(document, some, parts)
        parts.close()
        with self.folder.open(f"parts/vocabulary-{rank:05d}.npy", "wb") as file:
            np.save(file, used)
        self.ledger.save()

    def portions(self, document: Document) -> list["Portion"]:
        """Return what is learnt of a document and what is held out.

        A document belongs to one split; where that leaves a split without any, each is cut, as in `read_documents`.
        """
        if not self.cut:
            whole = document.metadata.get("whole", document.text)
            held_out = document.metadata.get("held_out", fraction_of(whole) < self.meta["val_fraction"])
            return [Portion(document.text, held_out)]
        learnt, held_out = cut_at_end(document.text, self.meta["val_fraction"])
        return [portion for portion in (Portion(learnt, False), Portion(held_out, True)) if portion.text]

    def deal(self, document: Document, portions: list["Portion"], parts: "Parts") -> None:
        """Give a document to the held-out shard, or, as often as its source's weight says, to training shards."""
        origin = document.metadata
        source = origin["source"]
        held_out = all(portion.held_out for portion in portions)
        copies = 1 if held_out else self.copies(document.text, self.weights[source])
        if not copies:
            self.ledger.drop(document, "weight", origin["bytes"])
            return
        self.ledger.leave(source, origin["bytes"])
        self.note(document, sum(len(portion.ids) for portion in portions))
        for portion in portions:
            for copy in range(1 if portion.held_out else copies):
                key = key_of(portion.text, self.meta["seed"], copy)
                shard = 0 if portion.held_out else 1 + key % self.meta["shards"]
                parts.write(shard, key, portion.ids, len(portion.text.encode()), {"id": document.id, **origin})

    def copies(self, text: str, weight: float) -> int:
        """Return how often a training epoch holds a document: the weight, rounded up or down by the text's hash."""
        rest = weight - math.floor(weight)
        return math.floor(weight) + (key_of(text, self.meta["seed"], -1) / 2**64 < rest)

    def note(self, document: Document, tokens: int) -> None:
        """Count what the report shows of the documents that are kept."""
        tallies, text, metadata = self.ledger.tallies, document.text, document.metadata
        tallies["tokens by source"][metadata["source"]] += tokens
        tallies["documents by bytes"][str(2 ** max(0, metadata["bytes"] - 1).bit_length())] += 1
        tallies["documents by tokens"][str(2 ** max(0, tokens - 1).bit_length())] += 1
        tallies["documents by language"][metadata.get("language", "not identified")] += 1
        tallies["documents by license"][metadata["license"]] += 1
        signs = [sign for sign in NOISE_SIGNS if sign in text]
        tallies["documents with a sign of noise"].update(signs or ["none"])
        tallies["noise"]["documents"] += bool(signs)
        note_cluster(self.ledger, document, kept=True)


def measured(documents: DocumentsPipeline) -> Iterator[Document]:
    """Yield documents with their bytes."""
    for document in documents:
        document.metadata["bytes"] = len(document.text.encode())
        yield document


def key_of(text: str, seed: int, copy: int) -> int:
    """Return 64 bits that place a document, or a copy of it, in the shuffled order."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=struct.pack("<qq", seed, copy))
    return int.from_bytes(digest.digest(), "little")


def spread(keys: np.ndarray) -> np.ndarray:
    """Return keys (n,) uint64 of which none that come again are equal: equal documents shall not lie side by side."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    again = (np.arange(len(keys)) - np.searchsorted(ranked, ranked)).astype(np.uint64)  # 0 for the first of its kind
    mixed = ranked ^ (again * MIX[0])
    for multiplier, shift in zip(MIX[1:], (30, 27), strict=True):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * multiplier
    result = np.empty_like(keys)
    result[order] = np.where(again > 0, mixed, ranked)
    return result


def shard_names(count: int) -> list[str]:
    """Return the held-out shard and the training shards."""
    return ["val", *(f"train-{number:05d}" for number in range(count))]


class Parts:
    """What one task gives to all shards: files in which it lies shard by shard, each written when enough is there.

    One file is open at a time, however many shards there are, and none is appended to: object storage cannot do that.
    """

    def __init__(self, folder: DataFolder, shards: int, rank: int) -> None:
        self.folder, self.shards, self.rank = folder, shards, rank
        self.ends: list[dict[str, list[int]]] = []  # of each file: of each kind, where a shard's bytes end
        self.begin()

    def begin(self) -> None:
        """Wait for documents of the next file."""
        self.waiting = {kind: [bytearray() for _ in range(self.shards)] for kind in KINDS}
        self.size = 0

    def write(self, shard: int, key: int, ids: np.ndarray, size: int, origin: dict[str, Any]) -> None:
        """Add a document to a shard."""
        kept = {name: str(origin.get(name) or "") for name in ORIGIN}
        entry = np.array([(key, len(ids), size)], dtype=ENTRY)
        contents = (ids.tobytes(), entry.tobytes(), json.dumps(kept).encode() + b"\n")
        for kind, content in zip(KINDS, contents, strict=True):
            self.waiting[kind][shard] += content
            self.size += len(content)
        if self.size >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is there, a file for each kind."""
        for kind, shards in self.waiting.items():
            with self.folder.open(f"parts/{self.rank:05d}-{len(self.ends)}.{kind}", "wb") as file:
                file.writelines(shards)
        self.ends.append({kind: np.cumsum([0, *map(len, shards)]).tolist() for kind, shards in self.waiting.items()})
        self.begin()

    def close(self) -> None:
        """Write the rest, and at last where everything is."""
        self.flush()
        with self.folder.open(f"parts/{self.rank:05d}.json", "wb") as file:
            file.write(json.dumps(self.ends).encode())


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
        order = np.argsort(spread(entries["key"]), kind="stable")
        lengths = entries["tokens"][order].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        self.write_tokens(name, entries["tokens"], order)
        with self.folder.open(f"shards/{name}.starts.npy", "wb") as file:
            np.save(file, starts)
        self.write_origins(name, order, starts, lengths)
        facts = {key: self.meta[key] for key in ("dtype", "vocab_size", "tokenizer_sha256")} | {
            "documents": len(entries),
            "tokens": int(lengths.sum()) + 1,
            "bytes": int(entries["bytes"].sum(dtype=np.int64)),
        }
        with self.folder.open(f"shards/{name}.json", "wb") as file:
            file.write(json.dumps(facts).encode())

    def gather(self, name: str, kind: str) -> bytearray:
        """Return what all tasks gave to a shard."""
        content, shard = bytearray(), shard_names(self.meta["shards"]).index(name)
        for task in range(self.tasks):
            for number, ends in enumerate(json.loads(self.folder.cat_file(f"parts/{task:05d}.json"))):
                begin, end = ends[kind][shard : shard + 2]
                if begin < end:
                    content += self.folder.cat_file(f"parts/{task:05d}-{number}.{kind}", begin, end)
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
            file.write(np.array([self.meta["separator"]], dtype=self.meta["dtype"]).tobytes())

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
