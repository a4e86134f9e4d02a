"""Where text comes from: the embedded stories, one's own files, or a data set on the Hub, as a stream of documents.

The tokenizer is trained on the `train` split of the same stream that the model later learns, and both are judged on
its `val` split. A document's split follows from its content, so it never changes when data is added.
"""

import glob
import hashlib
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from training.data import stories

Split = Literal["train", "val"]
Sized = TypeVar("Sized")

OPEN_FILES = 64  # of sources that are read in turn: systems let a process open a few hundred
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 2**20  # tokenized at once: few, because encoded text is far larger


@dataclass(kw_only=True)
class DocumentSource:
    """Settings that name the text; the stages `tokenizer` and `data` share them."""

    files: list[str] = field(
        default_factory=list,
        metadata={"help": "Text files or globs: .txt and .md are a document each, .jsonl and .parquet hold many."},
    )
    dataset: str | None = field(default=None, metadata={"help": "Id of a Hub data set with a text column."})
    text_column: str = field(default="text", metadata={"help": "Column of .jsonl, .parquet and Hub data."})
    val_fraction: float = field(default=0.1, metadata={"help": "Share of the text that is held out."})
    num_stories: int = field(default=20000, metadata={"help": "Stories to generate where no files are given."})
    seed: int = field(default=0, metadata={"help": "Seed of the story generator and of shuffled shards."})
    sources: list[dict] = field(
        default_factory=list, metadata={"help": "Sources to clean and mix, in YAML only: see training/data/README.md."}
    )


def read_documents(source: DocumentSource, split: Split) -> Iterator[str]:
    """Yield the documents of a split.

    A single document is cut by characters, its end being the held-out part; of several, each belongs to one split by a
    hash of its text. The embedded stories have splits of their own, which share no combination of facts.

    Raises:
        ValueError: No such file, an empty one, one that is not UTF-8, a row without text, or no document at all.
    """
    if source.sources:
        for text in _from_sources(source, say=split == "train"):
            if (fraction_of(text) < source.val_fraction) == (split == "val"):
                yield text
        return
    if not source.files and source.dataset is None:
        wanted = source.num_stories if split == "train" else round(source.num_stories * source.val_fraction)
        yield from itertools.islice(stories.documents("train" if split == "train" else "dev", source.seed), wanted)
        return
    documents = _from_files(source) if source.files else _from_hub(source)
    first_two = list(itertools.islice(documents, 2))
    if not first_two:
        raise ValueError(f"{source.files or source.dataset} holds no text; give at least one document.")
    if len(first_two) == 1:
        text = first_two[0]
        cut = int(len(text) * (1 - source.val_fraction))
        yield text[:cut] if split == "train" else text[cut:]
        return
    for text in itertools.chain(first_two, documents):
        if (fraction_of(text) < source.val_fraction) == (split == "val"):
            yield text


def fraction_of(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone; below `val_fraction` the text is held out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def cut_batches(documents: Iterable[Sized], size_of: Callable[[Sized], int]) -> Iterator[list[Sized]]:
    """Yield documents a batch at a time: `BATCH_DOCUMENTS`, or fewer that together have `BATCH_BYTES`."""
    batch: list[Sized] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += size_of(document)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def expand_files(patterns: list[str]) -> list[str]:
    """Return the files that the patterns match, in order.

    Raises:
        ValueError: A pattern matches no file.
    """
    paths = []
    for pattern in patterns:
        found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not found:
            raise ValueError(f"{pattern} matches no file; check the path given by --files.")
        paths += found
    return paths


def _from_files(source: DocumentSource) -> Iterator[str]:
    for path in expand_files(source.files):
        yield from _read_file(Path(path), source.text_column)


def _read_file(path: Path, column: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path, column)
        return
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    yield _text_of_line(path, number, line, column)
        else:
            text = path.read_text(encoding="utf-8")
            if not text.strip():
                raise ValueError(f"{path} is empty; give a file with text.")
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); "
            "convert it, for example with `iconv -t UTF-8`."
        ) from None


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        names = table.schema_arrow.names
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}; name one of {', '.join(names)} by --text_column.")
        rows = (row for batch in table.iter_batches(columns=[column]) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield _text_of_row(row, column, f"{path}, row {number}")


def _text_of_line(path: Path, number: int, line: str, column: str) -> str:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(f'{where}: expected {{"{column}": "..."}}, got {line[:60]!r}.') from None
    return _text_of_row(row, column, where)


def _text_of_row(row: Any, column: str, where: str) -> str:
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f'{where}: expected {{"{column}": "..."}}, got {str(row)[:60]!r}; remove the row, '
            "or name the column of the text by --text_column."
        )
    return text


def _from_sources(source: DocumentSource, *, say: bool) -> Iterator[str]:
    """Yield what can be read of the sources of a data recipe, as it is, from all sources and many files in turn."""
    from training.data.readers import Bad, read_unit
    from training.data.recipe import list_units, read_sources

    by_source = [list_units([one], 1) for one in read_sources(source.sources)]
    waiting = [unit for row in itertools.zip_longest(*by_source) for unit in row if unit]
    files = (read_unit(unit, limit=10_000_000) for unit in waiting)
    turn, bad = deque(itertools.islice(files, OPEN_FILES)), Counter[str]()
    try:
        while turn:
            file = turn.popleft()
            found = next(file, None)
            if found is None:
                turn.extend(itertools.islice(files, 1))
                continue
            turn.append(file)
            if isinstance(found, Bad):
                bad[found.reason] += 1
            else:
                yield found.text
    finally:  # whoever reads may have enough before the end
        if bad and say:
            print("not read:", ", ".join(f"{reason} {number:,}" for reason, number in bad.most_common()), flush=True)


def _from_hub(source: DocumentSource) -> Iterator[str]:
    from datasets import load_dataset

    for number, row in enumerate(load_dataset(source.dataset, split="train", streaming=True), start=1):
        yield _text_of_row(row, source.text_column, f"{source.dataset}, row {number}")
