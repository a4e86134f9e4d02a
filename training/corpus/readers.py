"""Reading files of any kind into documents within bounded memory, with a named `Bad` for whatever cannot be read.

datatrove's own readers leave out what they cannot read and some stop at the first broken byte; here nothing is lost
in silence: each record, and each defect that ends a file early, comes out as a document or as a `Bad` with a reason.
"""

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, TypeAlias

from datatrove.data import Document
from datatrove.utils.logging import logger

from training.corpus import rows
from training.corpus.recipe import Source, Unit, type_of
from training.corpus.rows import TABLES, Bad, mend
from training.corpus.unpack import DecompressionBomb, open_unpacked
from training.stories.tell import documents as tell_documents

# datatrove tells about each task on the terminal; our own lines say what a user wants to know.
logger.disable("datatrove")

Found: TypeAlias = Document | Bad
Reader: TypeAlias = Callable[[io.BufferedReader, Unit, int], Iterator[Found]]


def read_unit(unit: Unit, limit: int) -> Iterator[Found]:
    """Yield all documents of a unit, none longer than `limit` bytes, with source, licence and id in their metadata."""
    source = unit.source
    if source.dataset:
        found = _read_hub(unit)
    elif source.stories:
        found = _read_stories(unit)
    else:
        found = _read_file(unit, limit)
    for record in found:
        # Names and addresses come from the same broken files as texts do, and are written as UTF-8 as well.
        record.id = mend(record.id)
        if isinstance(record, Document):
            record = _check(record, limit)
        if isinstance(record, Document):
            origin = {"source": source.name, "license": source.license}
            # What a document says about itself, as its own licence, goes before what the recipe says of all.
            record.metadata = origin | {key: mend(value) for key, value in record.metadata.items() if value}
        else:
            record.detail = mend(record.detail)
        yield record


def _check(document: Document, limit: int) -> Found:
    if not isinstance(document.text, str):
        return Bad("no_text", document.id, f"the text is a {type(document.text).__name__}")
    document.text = mend(document.text)
    size = len(document.text.encode())
    if not document.text.strip():
        return Bad("empty", document.id, size=size)
    if size > limit:
        return Bad("too_large", document.id, document.text[:200], size)
    return document


def _read_file(unit: Unit, limit: int) -> Iterator[Found]:
    from training.corpus.formats import read_code, read_gutenberg, read_html, read_mediawiki, read_warc

    readers: dict[str | None, Reader] = {
        "text": read_text,
        "html": read_html,
        "warc": read_warc,
        "mediawiki": read_mediawiki,
        "gutenberg": read_gutenberg,
        "code": read_code,
    }
    kind, compression = type_of(unit.path)
    kind = unit.source.type or kind
    if kind is None:
        yield Bad("unknown_format", unit.label, "its name does not tell; set `type` of the source")
        return
    try:
        # Parquet files are read from their end and packed inside. warcio could unpack by itself, but takes a broken
        # archive for a short one.
        with open_unpacked(unit.path, None if kind == "parquet" else compression) as file:
            if kind in TABLES:
                yield from _read_table(file, kind, unit, limit)
            else:
                yield from readers[kind](file, unit, limit)
    except MemoryError:
        raise
    except DecompressionBomb as error:
        yield Bad("decompression_bomb", unit.label, str(error))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # which is no defect of the file
            raise
        yield Bad("corrupt_file" if os.path.exists(unit.path) else "unreadable_file", unit.label, _say(error))
    # Half-written archives, broken XML and the like raise whatever each format's library made up for it. What was
    # read up to there counts, the defect is named, and the next file goes on.
    except Exception as error:
        yield Bad("corrupt_file", unit.label, _say(error))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


# ---- text ----


def read_text(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield a text file as one document, or in pieces of at most `limit` bytes that end at a blank line or a line."""
    block, number, whole = b"", 0, ""
    while True:
        block += file.read(limit - len(block))
        if len(block) < limit:
            if block or number == 0:
                yield _piece(block, f"{unit.label}#{number}" if number else unit.label, whole)
            return
        whole = whole or hashlib.sha256(block).hexdigest()
        cut = block.rfind(b"\n\n") + 2
        if cut < limit // 2:
            cut = block.rfind(b"\n") + 1
        name = f"{unit.label}#{number}"
        if cut:
            yield _piece(block[:cut], name, whole)
            block = block[cut:]
        else:
            skipped, block = _skip_line(file, len(block))
            yield Bad("line_too_long", name, size=skipped)
        number += 1


def _piece(data: bytes, id: str, whole: str) -> Found:
    found = decode(data, id)
    if isinstance(found, Document) and whole:
        found.metadata["whole"] = whole  # pieces of a file are trained on or held out together
    return found


def _skip_line(file: BinaryIO, seen: int) -> tuple[int, bytes]:
    """Read to the end of a line; return its length and the begin of the next one that was read with it."""
    while block := file.read(2**20):
        end = block.find(b"\n") + 1
        if end:
            return seen + end, block[end:]
        seen += len(block)
    return seen, b""


def decode(data: bytes, id: str) -> Found:
    """Return the document in bytes that should be UTF-8."""
    text = rows.decode(data)
    return replace(text, id=id) if isinstance(text, Bad) else Document(text, id)


# ---- tables ----


def _read_table(file: io.BufferedReader, kind: str, unit: Unit, limit: int) -> Iterator[Found]:
    source = unit.source
    wanted = (source.text_column, source.id_column or "", "url", "license")
    for number, row in rows.read_rows(file, kind, limit, wanted):
        name = f"{unit.label}#{number}"
        yield replace(row, id=name) if isinstance(row, Bad) else row_to_document(row, name, source)


def row_to_document(row: Any, name: str, source: Source) -> Found:
    """Return the document in a row of a table."""
    if not isinstance(row, dict) or source.text_column not in row:
        columns = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
        return Bad("no_text", name, f"there is no column {source.text_column!r} in {columns}")
    given = row.get(source.id_column)
    metadata = {key: str(row[key]) for key in ("url", "license") if row.get(key)}
    return Document(row[source.text_column], str(given) if given is not None else name, metadata=metadata)


# ---- no files ----


def _read_hub(unit: Unit) -> Iterator[Found]:
    from datasets import load_dataset

    source = unit.source
    part, parts = map(int, unit.path.split("/"))
    data = load_dataset(source.dataset, source.subset, split=source.split, revision=source.revision, streaming=True)
    if data.num_shards >= parts:
        data, numbers = data.shard(parts, part), 1
    else:
        numbers = parts  # fewer files than tasks: each task keeps every so many rows
    for number, row in enumerate(data):
        if numbers == 1 or number % parts == part:
            yield row_to_document(dict(row), f"{source.dataset}/{unit.label}#{number}", source)


def _read_stories(unit: Unit) -> Iterator[Found]:
    part, parts = map(int, unit.path.split("/"))
    for number, text in enumerate(tell_documents("train", seed=0)):
        if number == unit.source.stories:
            return
        if number % parts == part:
            yield Document(text, f"stories#{number}")
