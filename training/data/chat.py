"""Conversations and preference pairs: rows from the embedded stories, a file or the Hub.

Every row is checked when it is read; `training.data.chat_formats` knows the shapes.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data import stories
from training.data.chat_formats import FORMATS, Kind, Row, detect, read_row


@dataclass(frozen=True)
class Loaded:
    """Rows in our own shape, to train on and held out, what kind they are, and the format they came in."""

    kind: Kind
    format: str
    train: list[Row]
    held_out: list[Row]


def load_rows(kinds: Sequence[Kind], data: str, num_train: int, num_eval: int, seed: int) -> Loaded:
    """Return the rows to train on and the rows to evaluate on.

    Args:
        kinds: What the stage takes; the columns of the first row decide.
        data: `stories`, a .jsonl, .json or .parquet file, or the Hub id of a data set (its `train` split).
        num_train: Rows to train on; 0 takes all of a file or data set.
        num_eval: Rows to hold out. Stories have a split of their own for it; of a file they are drawn by the seed.

    Raises:
        ValueError: No such file, an empty one, one that is not UTF-8, or a row of another shape; or too few rows.
    """
    if data == "stories":
        if num_train < 1:
            raise ValueError("the embedded stories never end; say how many to use, for example num_examples=20000.")
        generate = stories.conversations if kinds[0] == "conversations" else stories.preferences
        train = list(itertools.islice(generate("train", seed), num_train))
        held_out = list(itertools.islice(generate("dev", seed), num_eval))
        return Loaded(kinds[0], "embedded stories", train, held_out)
    found = _read(data)
    first = next(found, None)
    if first is None:
        shapes = " or ".join(form.example for form in FORMATS if form.kind in kinds)
        raise ValueError(f"{data} is empty; expected rows like {shapes}.")
    form = detect(kinds, first[1], first[0])
    rows = [read_row(form, row, where) for where, row in itertools.chain([first], found)]
    if len(rows) <= num_eval:
        raise ValueError(f"{data} has {len(rows)} rows, so eval_examples={num_eval} leaves none to train on.")
    order = np.random.default_rng(seed).permutation(len(rows))
    held, rest = order[:num_eval], order[num_eval:]
    rest = rest[:num_train] if num_train else rest
    return Loaded(form.kind, form.name, [rows[i] for i in rest], [rows[i] for i in held])


def _read(data: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file or Hub data set, with a name for it that a user can find."""
    path = Path(data)
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".json":
        yield from _read_json(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.exists() or path.suffix in (".csv", ".txt"):
        raise ValueError(f"{data} is not a .jsonl, .json or .parquet file; convert it, one conversation a row.")
    else:
        yield from _read_hub(data)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON ({error.msg}): {line[:60]!r}") from None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path given by --data.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); "
            "convert it, for example with `iconv -t UTF-8`."
        ) from None


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path given by --data.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__} and not a list of rows; a .jsonl has one a line.")
    for number, row in enumerate(content, start=1):
        yield f"{path}, row {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path given by --data.") from None
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}).") from None
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _read_hub(data: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(data, split="train")
    except Exception as error:  # each way of not being there has its own exception in the Hub stack
        raise ValueError(
            f"{data} is neither `stories`, nor a .jsonl, .json or .parquet file, nor a data set with a train split "
            f"that can be read from the Hub ({str(error).splitlines()[0]})."
        ) from None
    for number, row in enumerate(dataset, start=1):
        yield f"{data}, row {number}", row
