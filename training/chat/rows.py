"""Conversations and preference pairs: rows from the embedded stories, a file or the Hub.

Every row is checked when it is read; `training.chat.formats` knows the shapes.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.chat.formats import FORMATS, Kind, Row, Unusable, detect, read_row
from training.corpus.readers.hub import read_data_set
from training.corpus.readers.tables import read_table
from training.corpus.recipe import TABLES, type_of
from training.stories import talk


@dataclass(frozen=True)
class Loaded:
    """Rows in our own shape, to train on and held out, what kind they are, and the format they came in."""

    kind: Kind
    format: str
    train: list[Row]
    held_out: list[Row]
    left_out: Mapping[str, int] = field(default_factory=dict)  # rows that cannot be trained on, by reason
    unused: Set[str] = frozenset()  # columns, and keys of messages, that nobody looks at


def load_rows(kinds: Sequence[Kind], data: str, num_train: int, num_eval: int, seed: int) -> Loaded:
    """Return the rows to train on and the rows to evaluate on.

    Args:
        kinds: What the stage takes; the columns of the first row decide.
        data: `stories`, a .jsonl, .json, .csv or .parquet file, or the Hub id of a data set (its `train` split).
        num_train: Rows to train on; 0 takes all of a file or data set.
        num_eval: Rows to hold out. Stories have a split of their own for it; of a file they are drawn by the seed.

    Raises:
        ValueError: No such file, an empty one, one that is not UTF-8, or a row of another shape; or too few rows.
    """
    if data == "stories":
        return _tell(kinds[0], num_train, num_eval, seed)
    loaded = _load(kinds, data)
    rows = loaded.train
    if len(rows) <= num_eval:
        raise ValueError(f"{data} has {len(rows)} rows, so eval_examples={num_eval} leaves none to train on.")
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, rest = order[:num_eval], order[num_eval:]
    rest = rest[:num_train] if num_train else rest
    return replace(loaded, train=[rows[i] for i in rest], held_out=[rows[i] for i in held_out])


def _tell(kind: Kind, num_train: int, num_eval: int, seed: int) -> Loaded:
    """Return rows about the embedded stories."""
    if num_train < 1:
        raise ValueError("the embedded stories never end; say how many to use, for example num_examples=20000.")
    generate = talk.conversations if kind == "conversations" else talk.preferences
    train = list(itertools.islice(generate("train", seed), num_train))
    held_out = list(itertools.islice(generate("dev", seed), num_eval))
    return Loaded(kind, "embedded stories", train, held_out)


def _load(kinds: Sequence[Kind], data: str) -> Loaded:
    """Return all rows of a file or data set that can be trained on, and what cannot."""
    found = read_rows(data)
    first = next(found, None)
    if first is None:
        shapes = " or ".join(form.example for form in FORMATS if form.kind in kinds)
        raise ValueError(f"{data} is empty; expected rows like {shapes}.")
    form = detect(kinds, first[1], first[0])
    rows, left_out, unused, defects = [], Counter[str](), set[str](), []
    for where, row in itertools.chain([first], found):
        try:
            rows.append(read_row(form, row, where))
            unused |= form.unused(row)
        except Unusable as error:
            left_out[error.reason] += 1
            defects.append(error)
    if not rows:
        raise ValueError(f"none of the {len(defects)} rows can be trained on: {defects[0]}.")
    return Loaded(form.kind, form.name, rows, [], left_out, unused)


def read_rows(data: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file or Hub data set, with a name for it that a user can find."""
    kind, _ = type_of(data)
    if kind in TABLES:
        yield from read_table(data)
    elif kind or Path(data).exists():
        raise ValueError(f"{data} is not a .jsonl, .json, .csv or .parquet file; convert it, one conversation a row.")
    else:
        try:
            for number, row in read_data_set(data, streaming=False):
                yield f"{data}, row {number + 1}", row
        except ValueError as error:
            raise ValueError(
                f"{data} is neither `stories`, nor a .jsonl, .json, .csv or .parquet file, nor a data set on the Hub: "
                f"{error}"
            ) from None
