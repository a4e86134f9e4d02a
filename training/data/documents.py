"""Where text comes from: the embedded stories, one's own files, or a data set on the Hub, as a stream of documents.

The tokenizer is trained on the `train` split of the same stream that the model later learns, and both are judged on
its `val` split. A document's split follows from its content, so it never changes when data is added.
"""

import glob
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.data import stories

Split = Literal["train", "val"]


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
        ValueError: No such file, an empty one, one that is not UTF-8, or no document at all.
    """
    if source.sources:
        yield from (
            text for text in _from_sources(source) if (fraction_of(text) < source.val_fraction) == (split == "val")
        )
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
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
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


def _text_of_line(path: Path, number: int, line: str, column: str) -> str:
    try:
        return json.loads(line)[column]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f'{path}, line {number}: expected {{"{column}": "..."}}, got {line[:60]!r}.') from None


def _from_sources(source: DocumentSource) -> Iterator[str]:
    """Yield what can be read of the sources of a data recipe, as it is, from all of their files in turn."""
    from training.data.readers import Bad, read_unit
    from training.data.recipe import list_units, read_sources

    units = [read_unit(unit, limit=10_000_000) for unit in list_units(read_sources(source.sources), 1)]
    while units:
        for unit in list(units):
            found = next(unit, None)
            if found is None:
                units.remove(unit)
            elif not isinstance(found, Bad):
                yield found.text


def _from_hub(source: DocumentSource) -> Iterator[str]:
    from datasets import load_dataset

    for row in load_dataset(source.dataset, split="train", streaming=True):
        yield row[source.text_column]
