"""Reading files of any kind into documents within bounded memory, with a named `Bad` for whatever cannot be read.

datatrove's own readers leave out what they cannot read and some stop at the first broken byte; here nothing is lost
in silence: each record, and each defect that ends a file early, comes out as a document or as a `Bad` with a reason.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from datatrove.data import Document
from datatrove.utils.logging import logger

from training.corpus.readers.books import read_gutenberg
from training.corpus.readers.code import read_code
from training.corpus.readers.hub import read_data_set
from training.corpus.readers.tables import Bad, mend, read_rows
from training.corpus.readers.text import Found, read_text, row_to_document
from training.corpus.readers.unpack import DecompressionBomb, open_unpacked
from training.corpus.readers.web import read_html, read_warc
from training.corpus.readers.wiki import read_mediawiki
from training.corpus.recipe import TABLES, File, Share, Unit, type_of
from training.stories.tell import documents as tell_documents

# datatrove tells about each task on the terminal; our own lines say what a user wants to know.
logger.disable("datatrove")

Reader: TypeAlias = Callable[[io.BufferedReader, File, int], Iterator[Found]]
READERS: dict[str, Reader] = {
    "text": read_text,
    "html": read_html,
    "warc": read_warc,
    "mediawiki": read_mediawiki,
    "gutenberg": read_gutenberg,
    "code": read_code,
}


def read_unit(unit: Unit, limit: int) -> Iterator[Found]:
    """Yield all documents of a unit, none longer than `limit` bytes, with source, licence and id in their metadata."""
    source = unit.source
    if isinstance(unit, File):
        records = _read_file(unit, limit)
    elif source.dataset:
        records = _read_hub(unit, source.dataset)
    else:
        records = _read_stories(unit)
    for record in records:
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


def _read_file(unit: File, limit: int) -> Iterator[Found]:
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
                yield from READERS[kind](file, unit, limit)
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


def _read_table(file: io.BufferedReader, kind: str, unit: File, limit: int) -> Iterator[Found]:
    source = unit.source
    wanted = (source.text_column, source.id_column or "", "url", "license")
    for number, row in read_rows(file, kind, limit, wanted):
        name = f"{unit.label}#{number}"
        yield replace(row, id=name) if isinstance(row, Bad) else row_to_document(row, name, source)


def _read_hub(unit: Share, dataset: str) -> Iterator[Found]:
    source = unit.source
    rows = read_data_set(dataset, source.subset, source.split, source.revision, (unit.number, unit.of))
    for number, row in rows:
        yield row_to_document(row, f"{dataset}/{unit.number}#{number}", source)


def _read_stories(unit: Share) -> Iterator[Found]:
    for number, text in enumerate(tell_documents("train", seed=0)):
        if number == unit.source.stories:
            return
        if number % unit.of == unit.number:
            yield Document(text, f"stories#{number}")
