"""Rows of tables in any file that holds them: lines or an array of JSON, CSV, TSV and Parquet, packed or not.

This is the one reading of them. Whoever takes a table as it is uses `read_table`, which stops at the first row that
cannot be read and names it; who counts what is bad, as the cleaning of sources does, uses `read_rows`.
"""

import csv
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from itertools import zip_longest
from typing import Any

from training.corpus.readers.unpack import DecompressionBomb, open_unpacked, refuse_bomb
from training.corpus.recipe import TABLES, type_of

BOM = b"\xef\xbb\xbf"  # which Windows programs put before UTF-8
BETWEEN = re.compile(r"[\s,]*")  # values of an array
BLOCK = 2**20  # characters of JSON and bytes of Parquet that are read at once, or more if a row is longer


@dataclass
class Bad:
    """Something that did not become a row or a document: why, where, and how many bytes of it were seen."""

    reason: str
    id: str = ""
    detail: str = ""
    size: int = 0


NumberedRow = tuple[int, Any]  # the number of a row, from 1, and the row or the `Bad` that stands in its place


def read_table(path: str, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file with a name for it that a user can find: `PATH, line 3` of lines, else `PATH, row 3`.

    Args:
        columns: The only ones that are wanted, which saves time with Parquet; all if empty.

    Raises:
        ValueError: The file, or a row of it, cannot be read.
    """
    kind, compression = type_of(path)
    try:
        if kind not in TABLES:
            raise ValueError(f"{path} is no table by its name; its name must end in .jsonl, .json, .csv or .parquet.")
        with open_unpacked(path, None if kind == "parquet" else compression) as file:
            word = "line" if kind == "jsonl" and not holds_values(file) else "row"
            for number, row in read_rows(file, kind, sys.maxsize, columns):
                if isinstance(row, Bad):
                    raise ValueError(explain(row, path, f"{word} {number}" if number else "its header"))
                yield f"{path}, {word} {number}", row
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path.") from None
    except (OSError, EOFError, DecompressionBomb) as error:
        raise ValueError(f"{path} cannot be read to its end ({error}); repair it, or leave it out.") from None


def explain(bad: Bad, path: str, place: str = "") -> str:
    """Return the sentence on what is bad at a place in a file, and what to do about it."""
    where = f"{path}, {place}" if place else path
    match bad.reason:
        case "invalid_utf8":
            behind = f" in {place}" if place else ""
            return f"{path} is not UTF-8 ({bad.detail}){behind}; convert it, for example with `iconv -t UTF-8`."
        case "binary":
            return f"{where} holds zero bytes, which text does not; convert it to UTF-8, or leave it out."
        case "invalid_json":
            return f"{where} is not JSON {bad.detail}; repair it, or remove it."
        case "corrupt_file":
            return f"{path} is not a Parquet file, or a broken one ({bad.detail}); make it again, or leave it out."
        case _:
            return f"{where} cannot be read ({bad.reason}: {bad.detail}); repair it, or remove it."


def read_rows(file: BufferedReader, kind: str, limit: int, columns: tuple[str, ...] = ()) -> Iterator[NumberedRow]:
    """Yield the rows of an open file, or what is bad in place of one.

    Args:
        kind: One of `TABLES`.
        limit: Bytes of the longest row.
        columns: The only ones that are wanted, which saves time with Parquet; all if empty.

    Raises:
        Exception: Whatever a format's library says of a file that is broken as a whole.
    """
    match kind:
        case "jsonl":
            yield from _read_values(file, limit) if holds_values(file) else _read_lines(file, limit)
        case "csv" | "tsv":
            yield from _read_csv(file, limit, "," if kind == "csv" else "\t")
        case _:
            yield from _read_parquet(file, columns)


def decode(data: bytes) -> str | Bad:
    """Return the text in bytes that should be UTF-8, without a byte-order mark and with plain line ends."""
    if b"\0" in data:
        return Bad("binary", size=len(data))
    try:
        return data.removeprefix(BOM).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        detail = f"byte {error.object[error.start]:#04x} at position {error.start}"
        return Bad("invalid_utf8", detail=detail, size=len(data))


def mend(text: str) -> str:
    """Return a text with U+FFFD for half of a surrogate pair, as a broken `\\ud83d` in JSON or a file's name gives."""
    try:
        text.encode()
    except UnicodeEncodeError:  # UTF-8 cannot write it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def lines(file: BufferedReader, limit: int) -> Iterator[tuple[int, str | Bad]]:
    """Yield the number and the text of each line, its end included; one of more than `limit` bytes is a `Bad`.

    A line ends with a line feed and with nothing else: JSON may hold U+2028 and the like in a text.
    """
    number = 0
    while line := file.readline(limit):
        number += 1
        if len(line) == limit and not line.endswith(b"\n"):
            seen = len(line)
            while part := file.readline(2**20):
                seen += len(part)
                if part.endswith(b"\n"):
                    break
            yield number, Bad("line_too_long", size=seen)
        else:
            yield number, decode(line)


# ---- JSON ----


def holds_values(file: BufferedReader) -> bool:
    """Whether a file of JSON is an array, or objects over several lines each, and not a row a line."""
    return re.match(rb"(\xef\xbb\xbf)?\s*(\[|\{[ \t]*\r?\n)", file.peek(BLOCK)) is not None


def _read_lines(file: BufferedReader, limit: int) -> Iterator[NumberedRow]:
    for number, line in lines(file, limit):
        if isinstance(line, Bad):
            yield number, line
        elif line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _no_json(error, line)


def _no_json(error: Exception, text: str) -> Bad:
    said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return Bad("invalid_json", detail=f"({said}): {text[:60].strip()!r}", size=len(text.encode()))


def _read_values(file: BufferedReader, limit: int) -> Iterator[NumberedRow]:
    """Yield the values of an array, or values one after the other; what follows a broken one is not found again."""
    number = 0
    try:
        for value in _values(TextIOWrapper(file, encoding="utf-8-sig", newline=""), limit):
            number += 1
            yield number, value
    except UnicodeDecodeError as error:
        yield number + 1, Bad("invalid_utf8", detail=f"byte {error.object[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        yield number + 1, _no_json(error, "")


def _values(text: TextIOWrapper, limit: int) -> Iterator[Any]:
    decoder, buffer = json.JSONDecoder(), text.read(BLOCK)
    at = len(buffer) - len(buffer.lstrip())
    is_array = buffer[at] == "["
    at += is_array
    while True:
        at = BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if is_array and buffer.startswith("]", at):
            if (buffer[at + 1 :] + text.read(BLOCK)).strip():
                raise ValueError("something follows the array")
            return
        problem, value, end = None, None, len(buffer)
        try:
            value, end = decoder.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            problem = error
        if end == len(buffer):  # it may go on in what is not read yet
            rest = buffer[at:]
            if len(rest) <= limit and (more := text.read(max(BLOCK, len(rest)))):
                buffer, at = rest + more, 0
                continue
            if not rest and not is_array:
                return
            if problem:
                raise problem if rest else ValueError("the array has no end")
        at = end
        yield value


# ---- CSV ----


class _Lines:
    """The lines of a CSV file for `csv.reader`, which takes several where a quoted cell has line breaks.

    What a record took can be given back but for its first line: a stray quote swallows rows up to the next quote.
    """

    def __init__(self, file: BufferedReader, limit: int) -> None:
        self.file, self.limit = lines(file, limit), limit
        self.again: deque[str | Bad] = deque()
        self.begin()

    def begin(self) -> None:
        """Begin with a record."""
        self.taken: list[str | Bad] = []
        self.size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.file)[1]
        self.taken.append(line)
        if isinstance(line, Bad):
            raise csv.Error("a line of it cannot be read")
        self.size += len(line)
        if self.size > self.limit:
            raise csv.Error("a quote is never closed")
        return line

    def give_back(self) -> str | Bad:
        """Give back all lines of the record but the first, which is returned."""
        first, *others = self.taken
        self.again.extendleft(reversed(others))
        return first


def _read_csv(file: BufferedReader, limit: int, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(limit)
    taken = _Lines(file, limit)
    # Strict: else a quote behind which a cell goes on would be taken away, and what is in it cut in another place.
    cells = csv.reader(taken, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        taken.begin()
        try:
            row: list[str] | Bad = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            first = taken.give_back()
            if isinstance(first, str) and delimiter == "\t" and len(first) <= limit:
                row = first.rstrip("\n").split("\t")  # most writers of TSV know no quotes
            else:
                row = first if isinstance(first, Bad) else _no_csv(str(error), first)
        if isinstance(row, list) and not any(cell.strip() for cell in row):
            continue
        if header is None:
            if isinstance(row, Bad):
                yield 0, row
                return
            header = [name.strip() for name in row]
            continue
        number += 1
        if isinstance(row, list) and len(row) > len(header):
            row = _no_csv(f"{len(row)} cells under a header of {len(header)}", delimiter.join(row))
        yield number, row if isinstance(row, Bad) else dict(zip_longest(header, row))


def _no_csv(said: str, text: str) -> Bad:
    return Bad("invalid_csv", detail=f"{said}: {text[:60].strip()!r}", size=len(text.encode()))


# ---- Parquet ----


def _read_parquet(file: BufferedReader, columns: tuple[str, ...]) -> Iterator[NumberedRow]:
    import pyarrow

    number = 0
    try:
        for row in _parquet_rows(file, columns):
            number += 1
            yield number, row
    except pyarrow.ArrowException as error:
        yield number + 1, Bad("corrupt_file", detail=str(error))


def _parquet_rows(file: BufferedReader, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield rows within bounded memory: equal texts, which Parquet writes once, are many only when they are yielded.

    Raises:
        DecompressionBomb: The rows are far larger than the file.
    """
    import pyarrow
    from pyarrow import parquet

    size = file.seek(0, 2)
    with parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
    kinds = (pyarrow.string(), pyarrow.large_string())
    texts = [field.name for field in schema if field.type in kinds]
    wanted = [name for name in schema.names if not columns or name in columns]
    seen = 0
    with parquet.ParquetFile(file, read_dictionary=texts) as table:
        for group in range(table.num_row_groups):
            facts = table.metadata.row_group(group)
            chunks = (facts.column(i) for i in range(facts.num_columns))
            plain = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)
            refuse_bomb(size, plain)
            at_once = max(1, min(10_000, 16 * BLOCK * facts.num_rows // max(1, plain)))
            for batch in table.iter_batches(batch_size=at_once, row_groups=[group], columns=wanted):
                for row in _few_at_once(batch):
                    seen += sum(len(value) for value in row.values() if isinstance(value, str))
                    refuse_bomb(size, seen)
                    yield row


def _few_at_once(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch, of which as many are written out at once as are surely small together."""
    from pyarrow import compute, types

    columns = [column.dictionary for column in batch.columns if types.is_dictionary(column.type)]
    longest = max(
        (compute.max(compute.binary_length(texts)).as_py() or 1 for texts in columns if len(texts)), default=1
    )
    step = max(1, 16 * BLOCK // longest)
    for begin in range(0, batch.num_rows, step):
        yield from batch.slice(begin, step).to_pylist()
