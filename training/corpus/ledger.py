"""The books of a data run: what came in, what each step let through or dropped and why, and what came out.

Each task keeps one ledger for each pass over its documents and writes it when the pass ends; the ledgers of all tasks
added up are the report. documents in = documents out + documents dropped by reason, for every source.
"""

import gzip
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datatrove.data import Document
from datatrove.io import DataFolder

from training.corpus.readers.tables import Bad

EXAMPLES = 3  # dropped documents of each reason that a task shows
SNIPPET = 300  # characters of such an example
SPLITS = "documents by split"  # a tally of the first pass, which says whether either split would be empty


class Ledger:
    """Counts of one pass of one task.

    Attributes:
        sources: For each source, documents and bytes that came `in` and went `out`.
        steps: For each step, documents and bytes in and out, seconds, and documents in by source.
        dropped: For each source, documents by reason.
        tallies: Any other counts, by name and value.
        examples: For each reason, some dropped documents; all of them are listed in `dropped/`, a JSON object a line.
    """

    def __init__(self, folder: DataFolder, name: str) -> None:
        self.folder, self.name, self.rank = folder, name, 0
        self.file: Any = None  # of the listing, which is opened when there is something to list
        self.listing: gzip.GzipFile | None = None
        self.start(0)

    def start(self, rank: int) -> None:
        """Begin a pass: a task that was interrupted starts again from its first document."""
        self.rank = rank
        self.sources: dict[str, Counter[str]] = defaultdict(Counter)
        self.steps: dict[str, Counter[str]] = defaultdict(Counter)
        self.dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self.tallies: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, list[dict[str, str]]] = defaultdict(list)

    def enter(self, source: str, size: int) -> None:
        """Count a document, or something that should have been one, that a source gave."""
        self.sources[source].update({"documents_in": 1, "bytes_in": size})

    def leave(self, source: str, size: int) -> None:
        """Count a document that goes on to the next pass."""
        self.sources[source].update({"documents_out": 1, "bytes_out": size})

    @contextmanager
    def timed(self, step: str) -> Iterator[Counter[str]]:
        """Add the time of a `with` block to a step and give its counts."""
        counts = self.steps[step]
        started = time.perf_counter()
        try:
            yield counts
        finally:
            counts["seconds"] += time.perf_counter() - started  # type: ignore[assignment]

    def drop(self, document: Document, reason: str, size: int) -> None:
        """Count a dropped document, list it, and keep it as an example if there are few of its kind."""
        self._drop(document.metadata["source"], document.id, reason, document.text[:SNIPPET], size)

    def drop_bad(self, source: str, bad: Bad) -> None:
        """Count what could not be read."""
        self._drop(source, bad.id, bad.reason, bad.detail, bad.size)

    def _drop(self, source: str, id: str, reason: str, text: str, size: int) -> None:
        self.dropped[source][reason] += 1
        self.tallies["bytes dropped"][reason] += size
        line = {"source": source, "id": id, "reason": reason, "bytes": size, "text": text}
        if self.listing is None:
            self.file = self.folder.open(f"dropped/{self.name}-{self.rank:05d}.jsonl.gz", "wb")
            self.listing = gzip.GzipFile("", "wb", fileobj=self.file, mtime=0)
        self.listing.write(json.dumps(line).encode() + b"\n")
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append({"source": source, "id": id, "text": text})

    def save(self) -> None:
        """Write the counts and close the list of what was dropped; the pass is over."""
        if self.listing is not None:
            self.listing.close()
            self.file.close()
            self.file = self.listing = None
        content = {
            key: {name: dict(sorted(counts.items())) for name, counts in sorted(getattr(self, key).items())}
            for key in ("sources", "steps", "dropped", "tallies")
        }
        with self.folder.open(f"ledger/{self.name}-{self.rank:05d}.json", "wb") as file:
            file.write(json.dumps(content | {"examples": self.examples}).encode())


class Dropped:
    """What datatrove's duplicate filters take as a writer for the documents that they leave out."""

    def __init__(self, ledger: Ledger, reason: str) -> None:
        self.ledger, self.reason = ledger, reason

    def __enter__(self) -> "Dropped":
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def write(self, document: Document, rank: int = 0) -> None:
        """Count a dropped document."""
        size = len(document.text.encode())
        self.ledger.drop(document, self.reason, size)
        if "minhash_cluster_id" in document.metadata:
            note_cluster(self.ledger, document, kept=False)


def note_cluster(ledger: Ledger, document: Document, *, kept: bool) -> None:
    """Remember the documents of the first few groups of near duplicates, as examples for the report."""
    cluster = document.metadata.get("minhash_cluster_id", -1)
    if 0 <= cluster < EXAMPLES and len(ledger.examples[f"cluster {cluster}"]) < EXAMPLES:
        entry = {"source": document.metadata["source"], "id": document.id, "text": document.text[:SNIPPET]}
        ledger.examples[f"cluster {cluster}"].append(entry | {"kept": "yes" if kept else "no"})


def add_up(folder: DataFolder, name: str) -> dict[str, Any]:
    """Return the sum of all tasks' ledgers of a pass; all zero if there was no such pass."""
    total: dict[str, Any] = {key: defaultdict(Counter) for key in ("sources", "steps", "dropped", "tallies")}
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for path in sorted(folder.list_files(glob_pattern=f"ledger/{name}-*.json")):
        with folder.open(path, "rb") as file:
            content = json.loads(file.read())
        for key, counted in total.items():
            for entry, counts in content[key].items():
                counted[entry].update(counts)
        for reason, found in content["examples"].items():
            examples[reason] = (examples[reason] + found)[:EXAMPLES]
    sums = {key: {name: dict(counts) for name, counts in counted.items()} for key, counted in total.items()}
    return sums | {"examples": dict(examples)}
