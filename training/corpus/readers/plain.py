"""Text as it is: the embedded stories, one's own files, or a data set on the Hub, as a stream of documents.

The tokenizer is trained on the `train` split of the same stream that the model later learns, and both are judged on
its `val` split. The first file or row that cannot be read is an error; in the sources of a recipe it is counted.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from training.corpus.readers.hub import commit_of, read_data_set
from training.corpus.readers.tables import Bad, decode, explain, mend, read_table
from training.corpus.readers.unpack import DecompressionBomb, open_unpacked
from training.corpus.recipe import TABLES, DocumentSource, expand_files, list_units, read_sources, type_of
from training.corpus.split import DataSplit, cut_at_end, fraction_of
from training.stories.tell import documents as tell_documents

OPEN_FILES = 64  # of sources that are read in turn: systems let a process open a few hundred


def read_documents(source: DocumentSource, split: DataSplit) -> Iterator[str]:
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


def _documents(source: DocumentSource, *, say: bool) -> Iterator[tuple[str, str]]:
    """Yield each document, and what its split follows from: its text, or the file that it is a part of."""
    if source.sources:
        return _from_sources(source, say=say)
    return ((text, text) for text in (_from_files(source, say=say) if source.files else _from_hub(source)))


def _fill_both_splits(source: DocumentSource) -> bool:
    """Whether the hash of their texts puts documents into either split; of many, the first few tell."""
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
        more = f" and {len(empty) - 3:,} more" if len(empty) > 3 else ""
        print(f"left out because there is no text in it: {', '.join(empty[:3])}{more}")


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
    from training.corpus.readers.unit import read_unit  # needs the extra `data`

    pinned = [
        replace(one, revision=commit_of(one.dataset, one.revision)) if one.dataset else one
        for one in read_sources(source.sources, source.files)
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
    assert source.dataset is not None
    for number, row in read_data_set(source.dataset, revision=commit_of(source.dataset)):
        yield _text_of_row(row, source.text_column, f"{source.dataset}, row {number + 1}")
