"""Where text comes from: the embedded stories, one's own files, or a data set on the Hub, as a stream of documents.

The tokenizer is trained on the `train` split of the same stream that the model later learns, and both are judged on
its `val` split. A document's split follows from its content, so it never changes when data is added.
"""

import hashlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from training.corpus.recipe import COMPRESSIONS, SUFFIXES, find_files, name_of, type_of
from training.corpus.revisions import commit_of
from training.corpus.rows import TABLES, Bad, decode, explain, mend, read_table
from training.corpus.unpack import DecompressionBomb, open_unpacked
from training.stories.tell import documents as tell_documents

Split = Literal["train", "val"]
Sized = TypeVar("Sized")

OPEN_FILES = 64  # of sources that are read in turn: systems let a process open a few hundred
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 2**20  # tokenized at once: few, because encoded text is far larger


@dataclass(kw_only=True)
class DocumentSource:
    """Settings that name the text; the stages `tokenizer` and `data` share them."""

    files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, folders or globs: .txt, .md, .rst are a document; .jsonl, .json, .csv, .parquet hold many."
        },
    )
    dataset: str | None = field(default=None, metadata={"help": "Id of a Hub data set with a text column."})
    text_column: str = field(default="text", metadata={"help": "Column of tables and Hub data."})
    val_fraction: float = field(default=0.1, metadata={"help": "Share of the text that is held out."})
    num_stories: int = field(default=20000, metadata={"help": "Stories to generate where no files are given."})
    seed: int = field(default=0, metadata={"help": "Seed of the story generator and of shuffled shards."})
    sources: list[dict] = field(
        default_factory=list,
        metadata={"help": "Sources to clean and mix, in YAML only: see training/corpus/README.md."},
    )


def read_documents(source: DocumentSource, split: Split) -> Iterator[str]:
    """Yield the documents of a split.

    Each belongs to one split by a hash of its text. Where that leaves a split without any, as with one book or two,
    each is cut by characters instead, its end being the held-out part. The embedded stories have splits of their own,
    which share no combination of facts.

    Raises:
        ValueError: No such file, one that cannot be read, a row without text, or no document at all.
    """
    if not source.sources and not source.files and source.dataset is None:
        wanted = source.num_stories if split == "train" else round(source.num_stories * source.val_fraction)
        yield from itertools.islice(tell_documents("train" if split == "train" else "dev", source.seed), wanted)
        return
    cut = not _fill_both_splits(source)
    for text, whole in _documents(source, say=split == "train"):
        if cut:
            text = cut_at_end(text, source.val_fraction)[split == "val"]
            if text:
                yield text
        elif (fraction_of(whole) < source.val_fraction) == (split == "val"):
            yield text


def check_val_fraction(val_fraction: float) -> None:
    """Raise ValueError if nothing would be held out, or everything."""
    if not 0 < val_fraction < 1:
        raise ValueError(
            f"val_fraction={val_fraction:g} must be above 0 and below 1: the model is judged on text that it has not "
            "seen; use for example 0.01."
        )


def _documents(source: DocumentSource, *, say: bool) -> Iterator[tuple[str, str]]:
    """Yield each document, and what its split follows from: its text, or the file that it is a piece of."""
    if source.sources:
        return _from_sources(source, say=say)
    return ((text, text) for text in (_from_files(source, say=say) if source.files else _from_hub(source)))


def _fill_both_splits(source: DocumentSource) -> bool:
    """Return whether the hash of their texts puts documents into either split; of many, the first few tell."""
    sides = set()
    for _, whole in _documents(source, say=False):
        sides.add(fraction_of(whole) < source.val_fraction)
        if len(sides) == 2:
            return True
    if not sides:
        raise ValueError(
            f"{source.files or source.dataset or 'the recipe'} holds no text; give at least one document."
        )
    return False


def cut_at_end(text: str, val_fraction: float) -> tuple[str, str]:
    """Return a text without its end, and the end, which is held out."""
    cut = int(len(text) * (1 - val_fraction))
    return text[:cut], text[cut:]


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
    """Return the files that folders, globs and URLs mean, each once, in order.

    Raises:
        ValueError: A pattern matches no file, or one that cannot be taken as it is.
    """
    paths: dict[str, str] = {}
    for pattern in patterns:
        for path, _, _ in find_files(pattern):
            # As the user wrote it: absolute paths say more than a record of a run should.
            relative = "://" not in pattern and not os.path.isabs(os.path.expanduser(pattern))
            paths.setdefault(name_of(path), os.path.relpath(path) if relative else path)
    for path in paths.values():
        _refuse_unknown(path)
    return list(paths.values())


def _refuse_unknown(path: str) -> None:
    kind, _ = type_of(path)
    if kind is None:
        known = " ".join(suffix for suffix, name in SUFFIXES.items() if name in ("text", *TABLES))
        raise ValueError(
            f"{path}: its name does not tell what it holds; files are taken as they are if it ends in one of {known}, "
            f"packed or not ({' '.join(COMPRESSIONS)})."
        )
    if kind not in ("text", *TABLES):
        raise ValueError(
            f"{path} holds {kind}, which has to be taken apart to be text; name it in a recipe under `sources` "
            "(see training/corpus/README.md)."
        )


def _from_files(source: DocumentSource, *, say: bool) -> Iterator[str]:
    empty: list[str] = []
    found = False
    for path in expand_files(source.files):
        for where, text in read_file(path, source.text_column):
            if text.strip():
                found = True
                yield text
            else:
                empty.append(where)
    if empty and not found:
        raise ValueError(f"{empty[0]} is empty; give a file with text.")
    if empty and say:
        print(f"left out because there is no text in it: {', '.join(empty[:3])}{_and_more(len(empty) - 3)}")


def _and_more(number: int) -> str:
    return f" and {number:,} more" if number > 0 else ""


def read_file(path: str, column: str) -> Iterator[tuple[str, str]]:
    """Yield what is in a file with a name for it: the text column of each row of a table, any other file as a whole.

    Raises:
        ValueError: The file cannot be read, or a row has no text.
    """
    kind, compression = type_of(path)
    if kind in TABLES:
        for where, row in read_table(path, (column,)):
            if kind != "jsonl" and column not in row:
                names = ", ".join(next(read_table(path))[1])
                raise ValueError(f"{path} has no column {column!r}; name one of {names} by --text_column.")
            yield where, _text_of_row(row, column, where)
        return
    try:
        with open_unpacked(path, compression) as file:
            text = decode(file.read())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path.") from None
    except (OSError, EOFError, DecompressionBomb) as error:
        raise ValueError(f"{path} cannot be read ({error}); repair it, or leave it out.") from None
    if isinstance(text, Bad):
        raise ValueError(explain(text, path))
    yield path, text.replace("\r", "\n")


def _text_of_row(row: Any, column: str, where: str) -> str:
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f'{where}: expected {{"{column}": "..."}}, got {str(row)[:60]!r}; remove the row, '
            "or name the column of the text by --text_column."
        )
    if mend(text) != text:
        raise ValueError(
            f"{where}: its text holds half of a surrogate pair, which is no character; repair the row, or remove it."
        )
    return text


def _from_sources(source: DocumentSource, *, say: bool) -> Iterator[tuple[str, str]]:
    """Yield what can be read of the sources of a data recipe, as it is, from all sources and many files in turn."""
    from training.corpus.readers import read_unit
    from training.corpus.recipe import list_units, read_sources

    pinned = [
        replace(one, revision=commit_of(one.dataset, one.revision)) if one.dataset else one
        for one in read_sources(source.sources)
    ]
    by_source = [list_units([one], 1) for one in pinned]
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
                yield found.text, found.metadata.get("whole", found.text)
    finally:  # whoever reads may have enough before the end
        if bad and say:
            print("not read:", ", ".join(f"{reason} {number:,}" for reason, number in bad.most_common()), flush=True)


def _from_hub(source: DocumentSource) -> Iterator[str]:
    from datasets import load_dataset

    assert source.dataset is not None
    data = load_dataset(source.dataset, split="train", streaming=True, revision=commit_of(source.dataset))
    for number, row in enumerate(data, start=1):
        yield _text_of_row(row, source.text_column, f"{source.dataset}, row {number}")
