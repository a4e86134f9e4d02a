"""Text files as documents, and how every reader makes one: from bytes, or from a row of a table."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, TypeAlias

from datatrove.data import Document

from training.corpus.readers.tables import Bad, decode
from training.corpus.recipe import File, Source

Found: TypeAlias = Document | Bad


def read_text(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield a text file as one document, or in parts of at most `limit` bytes that end at a blank line or a line."""
    block, number, whole = b"", 0, ""
    while True:
        block += stream.read(limit - len(block))
        if len(block) < limit:
            if block or number == 0:
                yield _part(block, f"{file.label}#{number}" if number else file.label, whole)
            return
        whole = whole or hashlib.sha256(block).hexdigest()
        cut = block.rfind(b"\n\n") + 2
        if cut < limit // 2:
            cut = block.rfind(b"\n") + 1
        name = f"{file.label}#{number}"
        if cut:
            yield _part(block[:cut], name, whole)
            block = block[cut:]
        else:
            skipped, block = _skip_line(stream, len(block))
            yield Bad("line_too_long", name, size=skipped)
        number += 1


def _part(data: bytes, id: str, whole: str) -> Found:
    found = to_document(data, id)
    if isinstance(found, Document) and whole:
        found.metadata["whole"] = whole  # parts of a file are trained on or held out together
    return found


def _skip_line(stream: BinaryIO, seen: int) -> tuple[int, bytes]:
    """Read to the end of a line; return its length and the begin of the next one that was read with it."""
    while block := stream.read(2**20):
        end = block.find(b"\n") + 1
        if end:
            return seen + end, block[end:]
        seen += len(block)
    return seen, b""


def to_document(data: bytes, id: str) -> Found:
    """Return the document in bytes that should be UTF-8."""
    text = decode(data)
    return replace(text, id=id) if isinstance(text, Bad) else Document(text, id)


def row_to_document(row: Any, name: str, source: Source) -> Found:
    """Return the document in a row of a table."""
    if not isinstance(row, dict) or source.text_column not in row:
        columns = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
        return Bad("no_text", name, f"there is no column {source.text_column!r} in {columns}")
    given = row.get(source.id_column)
    metadata = {key: str(row[key]) for key in ("url", "license") if row.get(key)}
    return Document(row[source.text_column], str(given) if given is not None else name, metadata=metadata)
