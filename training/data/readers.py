"""Reading files of any kind into documents within bounded memory, with a named `Bad` for whatever cannot be read.

datatrove's own readers leave out what they cannot read and some stop at the first broken byte; here nothing is lost
in silence: each record, and each defect that ends a file early, comes out as a document or as a `Bad` with a reason.
"""

import csv
import errno
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from datatrove.data import Document
from datatrove.utils.logging import logger

from training.data import stories
from training.data.recipe import Source, Unit, type_of

# datatrove tells about each task on the terminal; our own lines say what a user wants to know.
logger.disable("datatrove")

BOMB_RATIO, BOMB_BYTES = 300, 2**26  # text compresses to a tenth, logs to a hundredth of its size


@dataclass
class Bad:
    """Something that did not become a document: why, where, and how many bytes of it were seen."""

    reason: str
    id: str
    detail: str = ""
    size: int = 0


Found: TypeAlias = Document | Bad
Reader: TypeAlias = Callable[[BinaryIO, Unit, int], Iterator[Found]]


class DecompressionBomb(Exception):
    """A compressed file unpacks to far more than text would."""


class Zstandard:
    """The content of a file of Zstandard frames; unlike the library's own reader, not silent about a frame cut off."""

    CHUNK = 2048  # a frame of one repeated byte unpacks to 30,000 times as much

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.frame: Any = None
        self.rest = self.ready = b""

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end.

        Raises:
            EOFError: The last frame is cut off.
        """
        import zstandard

        while not self.ready:
            data = self.rest or self.raw.read(self.CHUNK)
            if not data:
                if self.frame is not None:
                    raise EOFError("the last Zstandard frame is cut off")
                return b""
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.ready, self.rest = self.frame.decompress(data), b""
            if self.frame.eof:
                self.frame, self.rest = None, self.frame.unused_data
        part, self.ready = self.ready[:size], self.ready[size:]
        return part


class Unpacked(io.RawIOBase):
    """A file's decompressed bytes, refused once they are both many and out of proportion to the compressed ones."""

    def __init__(self, raw: BinaryIO, compression: str | None) -> None:
        from fsspec.compression import compr

        self.raw, self.compressed = raw, compression is not None
        if compression == "zstd":
            self.file: Any = Zstandard(raw)
        else:
            self.file = compr[compression](raw, mode="rb") if compression else raw
        self.seen = 0

    def readable(self) -> bool:
        """Return True, as `BufferedReader` asks for it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer and return the number of bytes.

        Raises:
            DecompressionBomb: The file is one.
            OSError: It is cut off.
        """
        try:
            # read1: what is good of a file that ends early comes out before the error does.
            data = self.file.read1(len(buffer)) if self.compressed else self.file.read(len(buffer))
        except EOFError as error:  # which warcio would take for the end of the archive
            raise OSError(f"the compressed file is cut off: {error}") from None
        buffer[: len(data)] = data
        self.seen += len(data)
        if self.compressed and self.seen > max(BOMB_BYTES, BOMB_RATIO * self.raw.tell()):
            raise DecompressionBomb(f"{self.raw.tell()} bytes unpacked to more than {self.seen}")
        return len(data)


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
        if isinstance(record, Document):
            checked = _check(record, limit)
            if isinstance(checked, Document):
                origin = {"source": source.name, "license": source.license}
                # What a document says about itself, as its own licence, goes before what the recipe says of all.
                checked.metadata = origin | {key: value for key, value in checked.metadata.items() if value}
            yield checked
        else:
            yield record


def _check(document: Document, limit: int) -> Found:
    text = document.text
    if not isinstance(text, str):
        return Bad("no_text", document.id, f"the text is a {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, as a broken "\ud83d" in JSON gives
        document.text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        size = len(document.text.encode())
    if not text.strip():
        return Bad("empty", document.id, size=size)
    if size > limit:
        return Bad("too_large", document.id, text[:200], size)
    return document


def _read_file(unit: Unit, limit: int) -> Iterator[Found]:
    import fsspec

    from training.data.formats import read_code, read_gutenberg, read_html, read_mediawiki, read_warc

    readers: dict[str | None, Reader] = {
        "text": read_text,
        "jsonl": read_jsonl,
        "csv": read_csv,
        "parquet": read_parquet,
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
        with fsspec.open(unit.path, "rb") as raw:
            unpacked = io.BufferedReader(Unpacked(raw, compression), buffer_size=2**20)
            # Parquet files are read from their end and packed inside. warcio could unpack by itself, but takes a
            # broken archive for a short one.
            yield from readers[kind](raw if kind == "parquet" else unpacked, unit, limit)
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
    block, number = b"", 0
    while True:
        block += file.read(limit - len(block))
        if len(block) < limit:
            if block or number == 0:
                yield decode(block, f"{unit.label}#{number}" if number else unit.label)
            return
        cut = block.rfind(b"\n\n") + 2
        if cut < limit // 2:
            cut = block.rfind(b"\n") + 1
        name = f"{unit.label}#{number}"
        if cut:
            yield decode(block[:cut], name)
            block = block[cut:]
        else:
            skipped, block = _skip_line(file, len(block))
            yield Bad("line_too_long", name, size=skipped)
        number += 1


def _skip_line(file: BinaryIO, seen: int) -> tuple[int, bytes]:
    """Read to the end of a line; return its length and the begin of the next one that was read with it."""
    while block := file.read(2**20):
        end = block.find(b"\n") + 1
        if end:
            return seen + end, block[end:]
        seen += len(block)
    return seen, b""


def lines(file: BinaryIO, label: str, limit: int) -> Iterator[tuple[int, bytes | Bad]]:
    """Yield the number and the bytes of each line; one of more than `limit` bytes is a `Bad`."""
    number = 0
    while line := file.readline(limit):
        number += 1
        if len(line) == limit and not line.endswith(b"\n"):
            seen = len(line)
            while part := file.readline(2**20):
                seen += len(part)
                if part.endswith(b"\n"):
                    break
            yield number, Bad("line_too_long", f"{label}#{number}", size=seen)
        else:
            yield number, line


def decode(data: bytes, id: str) -> Found:
    """Return the document in bytes that should be UTF-8."""
    if b"\0" in data:
        return Bad("binary", id, size=len(data))
    try:
        return Document(data.decode("utf-8-sig").replace("\r\n", "\n"), id)
    except UnicodeDecodeError as error:
        detail = f"byte {data[error.start]:#04x} at position {error.start}"
        return Bad("invalid_utf8", id, detail, len(data))


# ---- tables ----


def read_jsonl(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield the text column of each line."""
    import orjson

    for number, line in lines(file, unit.label, limit):
        if isinstance(line, Bad):
            yield line
            continue
        if not line.strip():
            continue
        name = f"{unit.label}#{number}"
        try:
            # orjson refuses lone surrogates and invalid UTF-8; the first can be mended, the second is named.
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = _slow_json(line, name)
        yield row if isinstance(row, Bad) else row_to_document(row, name, unit.source)


def _slow_json(line: bytes, name: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Bad("invalid_utf8", name, f"byte {line[error.start]:#04x} at position {error.start}", len(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return Bad("invalid_json", name, _say(error), len(line))


def row_to_document(row: Any, name: str, source: Source) -> Found:
    """Return the document in a row of a table."""
    if not isinstance(row, dict) or source.text_column not in row:
        columns = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
        return Bad("no_text", name, f"there is no column {source.text_column!r} in {columns}")
    given = row.get(source.id_column)
    metadata = {key: str(row[key]) for key in ("url", "license") if row.get(key)}
    return Document(row[source.text_column], str(given) if given is not None else name, metadata=metadata)


def read_csv(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield the text column of each row; a broken row is named and the next one goes on."""
    csv.field_size_limit(limit)
    bad: list[Bad] = []

    def decoded() -> Iterator[str]:
        for number, line in lines(file, unit.label, limit):
            record = line if isinstance(line, Bad) else decode(line, f"{unit.label}#{number}")
            if isinstance(record, Bad):
                bad.append(record)
            else:
                yield record.text

    rows = csv.DictReader(decoded(), delimiter="\t" if ".tsv" in unit.path.lower() else ",")
    for number in itertools.count(1):
        name = f"{unit.label}#{number}"
        row = _next_row(rows, bad, name)
        yield from bad
        bad.clear()
        if row is None:
            return
        if row:
            yield row_to_document(row, name, unit.source)


def _next_row(rows: "csv.DictReader[str]", bad: list[Bad], name: str) -> dict[str, Any] | None:
    try:
        return next(rows, None)
    except csv.Error as error:  # a quote that is never closed, for example
        bad.append(Bad("invalid_csv", name, _say(error)))
        return {}


def read_parquet(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield the text column of each row, a few at a time."""
    import pyarrow.parquet

    source = unit.source
    with pyarrow.parquet.ParquetFile(file) as table:
        wanted = {source.text_column, source.id_column, "url", "license"}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        number = 0
        for batch in table.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield row_to_document(row, f"{unit.label}#{number}", source)


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
    for number, text in enumerate(stories.documents("train", seed=0)):
        if number == unit.source.stories:
            return
        if number % parts == part:
            yield Document(text, f"stories#{number}")
