"""Which documents hold the same work: editions, parts, anthologies and collected volumes; each is held out as a whole.

Titles do not decide, text does: documents that share enough runs of words are joined, and whole groups of joined
documents are trained on or held out. One run in `EVERY`, chosen by its hash, is compared, so a book of 100,000 words
takes 100 kB.
"""

import hashlib
import io
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep

from training.corpus.split import fraction_of

WORDS = 13  # of a run: the length that decontamination looks for as well
EVERY = 8  # runs of which one is compared
LEAST = 100  # runs that two documents share if they are joined: more than a rhyme, a prayer or a publisher's address
LARGEST = 3  # times `val_fraction` of all text: a larger group is trained on, or too little would be left to learn
REPORT = "works/report.json"
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # any large odd number
WORD = re.compile(r"[^\W_]+")
NOBODY = {"", "various", "anonymous", "unknown", "none"}


@dataclass(frozen=True)
class Runs:
    """What is compared of a document: `key` names its text, `hashes` (n,) uint64 are sorted and differ."""

    id: str
    key: str
    size: int  # bytes
    author: str
    hashes: np.ndarray


@lru_cache(maxsize=100_000)
def hash_word(word: str) -> int:
    """Return 64 bits that are the same on every machine."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def find_runs(text: str, every: int = EVERY) -> np.ndarray:
    """Return hashes (n,) uint64, sorted, of one in `every` runs of 13 words; signs, accents, capitals do not count."""
    plain = text if text.isascii() else unicodedata.normalize("NFKD", text)
    plain = re.sub("['’‘\u0300-\u036f]", "", plain.lower())  # didn't and didn’t are one word
    found = WORD.findall(plain)
    hashes = np.fromiter(map(hash_word, found), dtype=np.uint64, count=len(found))
    length = max(0, len(found) - WORDS + 1)
    runs = np.zeros(length, dtype=np.uint64)
    for place in range(WORDS):
        runs = runs * MULTIPLIER + hashes[place : place + length]
    runs ^= runs >> np.uint64(32)
    return np.unique(runs[runs % np.uint64(every) == 0])


def name_author(author: str) -> str:
    """Return an author's name in one form of the several that headers have; nothing if it names nobody."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[\[(].*?[\])]", " ", author)).lower()
    found = WORD.findall(re.sub("[\u0300-\u036f]", "", plain))
    name = " ".join(word for word in found if word not in ("mrs", "mr", "sir", "capt"))
    if name in NOBODY:
        return ""
    # E. Nesbit and Edith Nesbit are joined, two authors of one surname and initial too: rather one too many.
    first, *_, last = name.split() or [""] * 2 if " " in name else ("", name)
    return f"{first[:1]} {last}".strip()


def shared_runs(documents: Sequence[Runs]) -> Counter[tuple[int, int]]:
    """Return about how many runs each pair of documents shares, of those that share any."""
    hashes = np.concatenate([document.hashes for document in documents] or [np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(documents)), [len(document.hashes) for document in documents])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    begins = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, int)
    ends = np.r_[begins[1:], len(hashes)]
    pairs: Counter[tuple[int, int]] = Counter()
    for begin, end in zip(begins[ends - begins > 1].tolist(), ends[ends - begins > 1].tolist(), strict=True):
        some = owners[begin:end].tolist()
        # Of many documents that share a run each is paired with the first and with the one before it.
        pairs.update((a, b) for i, b in enumerate(some) for a in {some[0], some[i - 1]} if a < b)
    return Counter({pair: number * EVERY for pair, number in pairs.items()})


def join(documents: Sequence[Runs], *, authors: bool = False) -> list[list[int]]:
    """Return groups of documents by their places: those that share a work, or pieces of a file, and all they share.

    Args:
        authors: Also those whose headers name the same author.
    """
    parent = list(range(len(documents)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for (a, b), number in shared_runs(documents).items():
        smaller = min(len(documents[a].hashes), len(documents[b].hashes)) * EVERY
        # A tale of a few hundred words has few runs; half of them are enough.
        if number >= min(LEAST, max(2 * EVERY, smaller / 2)):
            parent[root(b)] = root(a)
    first: dict[str, int] = {}
    for place, document in enumerate(documents):
        for name in (f"key {document.key}", f"author {document.author}" if authors and document.author else ""):
            if name:
                parent[root(place)] = root(first.setdefault(name, place))
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(len(documents)):
        groups[root(place)].append(place)
    return list(groups.values())


def choose_held_out(documents: Sequence[Runs], groups: Sequence[list[int]], val_fraction: float) -> set[int]:
    """Return the numbers of the groups that are held out: by a hash of their texts, never all, of two at least one."""
    sizes = [sum(documents[place].size for place in group) for group in groups]
    keys = [min(documents[place].key for place in group) for group in groups]
    wanted = val_fraction * sum(sizes)
    if len(groups) < 2:
        return set()
    chosen = {
        number
        for number, (size, key) in enumerate(zip(sizes, keys, strict=True))
        if size <= LARGEST * wanted and fraction_of(key) < val_fraction
    }
    by_size = sorted(range(len(groups)), key=lambda number: (abs(sizes[number] - wanted), keys[number]))
    if not chosen:
        return {by_size[0]}
    return chosen if len(chosen) < len(groups) else chosen - {by_size[-1]}


class FindRuns(PipelineStep):
    """Writes for each task what is compared of its documents."""

    type = "works"
    name = "find runs of words"

    def __init__(self, folder: DataFolder) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Write NUMBER.jsonl with a line for each document, and NUMBER.npy with the hashes of all in turn."""
        hashes, lines = [], []
        for document in data:
            with self.track_time():
                found = find_runs(document.text)
            whole = str(document.metadata.get("whole", document.text))
            facts = {
                "id": document.id,
                "key": hashlib.sha256(whole.encode()).hexdigest(),
                "size": len(document.text.encode()),
                "author": name_author(str(document.metadata.get("author") or "")),
                "runs": len(found),
            }
            lines.append(json.dumps(facts))
            hashes.append(found)
        with self.folder.open(f"works/{rank:05d}.npy", "wb") as file:
            np.save(file, np.concatenate(hashes) if hashes else np.empty(0, np.uint64))
        with self.folder.open(f"works/{rank:05d}.jsonl", "wb") as file:
            file.write("".join(line + "\n" for line in lines).encode())


class JoinWorks(PipelineStep):
    """Joins the documents of all tasks into groups, and writes which of them are held out."""

    type = "works"
    name = "join works"

    def __init__(self, folder: DataFolder, tasks: int, val_fraction: float, authors: bool) -> None:
        super().__init__()
        self.folder, self.tasks, self.val_fraction, self.authors = folder, tasks, val_fraction, authors

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write of each task whether each of its documents is held out, and the report."""
        with self.track_time():
            documents: list[Runs] = []
            ends = [0]
            for task in range(self.tasks):
                documents += self.read(task)
                ends.append(len(documents))
            groups = join(documents, authors=self.authors)
            chosen = choose_held_out(documents, groups, self.val_fraction)
            held_out = np.zeros(len(documents), dtype=bool)
            for number in chosen:
                held_out[groups[number]] = True
            for task in range(self.tasks):
                with self.folder.open(f"works/{task:05d}.held_out.json", "wb") as file:
                    file.write(json.dumps(held_out[ends[task] : ends[task + 1]].tolist()).encode())
            with self.folder.open(REPORT, "wb") as file:
                file.write(json.dumps(describe(documents, groups, held_out)).encode())

    def read(self, task: int) -> list[Runs]:
        """Return what a task has written."""
        rows = [json.loads(line) for line in self.folder.cat_file(f"works/{task:05d}.jsonl").splitlines()]
        hashes = np.load(io.BytesIO(self.folder.cat_file(f"works/{task:05d}.npy")))
        parts = np.split(hashes, np.cumsum([row.pop("runs") for row in rows])[:-1]) if rows else []
        return [Runs(**row, hashes=part) for row, part in zip(rows, parts, strict=True)]


def describe(documents: Sequence[Runs], groups: Sequence[list[int]], held_out: np.ndarray) -> dict[str, Any]:
    """Return for the report the groups of several documents, and what held-out text has in common with the rest."""
    sides = [
        [document.hashes for document, out in zip(documents, held_out, strict=True) if out == side]
        for side in (False, True)
    ]
    train, val = (np.unique(np.concatenate(side)) if side else np.empty(0, np.uint64) for side in sides)
    several = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    return {
        "documents": len(documents),
        "groups": len(groups),
        "joined": [
            {"held_out": bool(held_out[group[0]]), "documents": [documents[place].id for place in group]}
            for group in several
        ],
        "held_out_runs": len(val),  # of those that are compared
        "of_them_in_training": int(np.isin(val, train).sum()),
    }
