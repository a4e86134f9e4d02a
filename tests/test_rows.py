"""One reading of tables for all: the same rows for whoever reads them, and a broken row costs no other."""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard
from datatrove.data import Document
from transformers import PreTrainedTokenizerBase

from training.corpus.readers.plain import read_documents
from training.corpus.readers.tables import Bad, read_table
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import DocumentSource, list_units, read_sources
from training.corpus.steps import _evaluation_texts
from training.evaluation.text_bits import read_texts
from training.prepare_data import main as prepare_data
from training.train_tokenizer import main as train_tokenizer

TEXTS = ["one\u2028line\u2029and\x85more", 'two, "quoted"\nin two lines', "three é🦊", "four"]
ROWS = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
BOM = b"\xef\xbb\xbf"
PACK: dict[str, Any] = {
    "": bytes,
    ".gz": gzip.compress,
    ".BZ2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def as_csv(delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def as_parquet(kind: Any = None) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": ["0", "1", "2", "3"], "text": pyarrow.array(TEXTS, kind)}), file)
    return file.getvalue()


LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
FILES = {
    "plain.jsonl": b"\n".join(LINES) + b"\n",
    "no_end.jsonl": b"\n".join(LINES),
    "blank.jsonl": b"\n" + b"\n  \n".join(LINES) + b"\n\n \n",
    "bom.jsonl": BOM + b"\r\n".join(LINES) + b"\r\n\r\n",
    "UPPER.JSONL": b"\n".join(LINES),
    "rows.ndjson": b"\n".join(LINES),
    "lines.json": b"\n".join(LINES),
    "array.json": b"[" + b", ".join(LINES) + b"]\n",
    "bom.json": BOM + json.dumps(ROWS, indent=2).encode(),
    "array.jsonl": b"[\n" + b",\n".join(LINES) + b"\n]",
    "pretty.jsonl": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "plain.csv": as_csv(","),
    "bom.CSV": BOM + as_csv(",", csv.QUOTE_ALL) + b"\r\n,\r\n\r\n",
    "plain.tsv": as_csv("\t"),
    "rows.parquet": as_parquet(),
    "LARGE.PARQUET": as_parquet(pyarrow.large_string()),
}


def plain(path: Path, **settings: Any) -> list[str]:
    """Return the documents of a file that is taken as it is."""
    source = DocumentSource(files=[str(path)], val_fraction=0.3, **settings)
    return [*read_documents(source, "train"), *read_documents(source, "val")]


def counted(path: Path, limit: int = 100_000) -> tuple[list[str], list[str]]:
    """Return the texts that a source of a recipe gives, and the reasons of what is none."""
    (source,) = read_sources([{"name": "it", "files": str(path)}])
    found = [record for unit in list_units([source], 1) for record in read_unit(unit, limit)]
    return (
        [record.text for record in found if isinstance(record, Document)],
        [record.reason for record in found if isinstance(record, Bad)],
    )


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", FILES)
def test_all_who_read_rows_read_the_same(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / (name if name.lower().endswith("parquet") else name + suffix)
    path.write_bytes(FILES[name] if path.name == name else PACK[suffix](FILES[name]))
    assert [row for _, row in read_table(str(path))] == ROWS
    assert sorted(plain(path)) == sorted(TEXTS)
    assert counted(path) == (TEXTS, [])
    assert read_texts(path) == TEXTS
    unit = list_units([read_sources([{"name": "it", "files": str(path)}])[0]], 1)[0]
    assert [texts[:2] for texts in _evaluation_texts(unit, 1000)] == [[row["id"], row["text"]] for row in ROWS]


GOOD = b'{"text": "good"}'
BROKEN: list[tuple[str, bytes, str, list[str]]] = [
    ("a.jsonl", GOOD + b'\n{"text": }\n' + GOOD, r"a.jsonl, line 2 is not JSON \(Expecting value\)", ["invalid_json"]),
    ("a.jsonl", GOOD + b"\n\n\n" + b"9" * 5000, "a.jsonl, line 4 is not JSON", ["invalid_json"]),
    ("a.jsonl", GOOD + b'\n{"text": "\xe9"}', r"a.jsonl is not UTF-8 \(byte 0xe9 .*line 2; convert", ["invalid_utf8"]),
    ("a.jsonl", GOOD + b'\n{"text": "half \\ud83d pair"}', "a.jsonl, line 2: its text holds half of a surr", []),
    ("a.jsonl", GOOD + b'\n{"text": ["x"]}', "a.jsonl, line 2: expected", ["no_text"]),
    ("a.json", b"[" + GOOD + b', {"text": ]', "a.json, row 2 is not JSON", ["invalid_json"]),
    ("a.json", b"[" + GOOD + b",", "a.json, row 2 is not JSON .the array has no end", ["invalid_json"]),
    ("a.json", b"[" + GOOD + b"]" + GOOD, "a.json, row 2 is not JSON .something follows", ["invalid_json"]),
    ("a.json", b"[" + GOOD + b', {"text": "\xe9"}]', "a.json is not UTF-8", ["invalid_utf8"]),
    ("a.csv", b'id,text\n0,good\n1,"He said "no", twice"\n2,good\n', "a.csv, row 2 cannot be read", ["invalid_csv"]),
    ("a.csv", b"id,text\n0,good\n1,cut, off\n", "a.csv, row 2 .*3 cells under a header of 2", ["invalid_csv"]),
    ("a.csv", b"id,text\n0,good\n1,caf\xe9\n", "a.csv is not UTF-8 .* in row 2", ["invalid_utf8"]),
    ("a.csv", b"id,text\n0,good\n1\n", "a.csv, row 2: expected", ["no_text"]),
    ("a.jsonl.gz", gzip.compress(GOOD * 1000)[:-9], "cannot be read to its end", ["corrupt_file"]),
    ("a.parquet", b"PAR1 and no more", "a.parquet is not a Parquet file", ["corrupt_file"]),
]


@pytest.mark.parametrize(("name", "content", "message", "reasons"), BROKEN)
def test_the_first_bad_row_is_named_by_who_takes_a_file_as_it_is_and_all_are_counted_by_who_cleans(
    tmp_path: Path, name: str, content: bytes, message: str, reasons: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        plain(tmp_path / name)
    texts, bad = counted(tmp_path / name)
    assert bad == reasons and (not texts or texts[0] == "good")


@pytest.mark.parametrize("rows", [40, 4000])
def test_values_that_cross_the_blocks_in_which_a_file_is_read_are_whole(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.corpus.readers.tables.BLOCK", 64)
    found = [{"text": f"{'x' * (number % 150)} {number}"} for number in range(rows)] + [12345, [1, [2]], "s"]
    (tmp_path / "a.json").write_text(json.dumps(found, indent=2 if rows == 40 else None))
    assert [row for _, row in read_table(str(tmp_path / "a.json"))] == found


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # A cell that begins with a quote which is no quoting takes rows up to the next quote.
        ("a.csv", 'id,text\n0,zero\n1,"stray\n2,two\n3,"three"\n4,four\n', ["zero", "two", "three", "four"]),
        ("a.csv", 'id,text\n1,"stray\n2,two\n3,"three, and\n2, so on"\n', ["two", "three, and\n2, so on"]),
        ("a.csv", 'id,text\n1,never closed: "\n2,"open\n3,three\n', ['never closed: "', "three"]),
        ("a.csv", 'id,text\n1,5" disk\n2,it\'s "fine"\n', ['5" disk', 'it\'s "fine"']),
        (
            "a.tsv",
            'id\ttext\n1\t"Hello," he said.\n2\t"open\n3\tthree\n4\t"a ""b"""\n',
            ['"Hello," he said.', '"open', "three", 'a "b"'],
        ),
    ],
)
def test_a_stray_quote_costs_its_own_row_at_most(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(content)
    texts, bad = counted(tmp_path / name)
    assert texts == expected and len(texts) + len(bad) == content.count("\n") - 1 - expected.count("\n") - sum(
        text.count("\n") for text in expected
    )


READ_BOMB = """
import sys
import pyarrow
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import list_units, read_sources

(unit,) = list_units(read_sources([{"name": "it", "files": sys.argv[1]}]), 1)
reasons = [found.reason for found in read_unit(unit, 10_000_000)]
print(reasons[-1], set(reasons[:-1]), pyarrow.default_memory_pool().max_memory() < 100_000_000)
"""


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_a_parquet_file_of_one_text_many_times_is_not_unpacked_at_once(tmp_path: Path, kind: str) -> None:
    texts = pyarrow.array(["a" * 12_000_000] * 32, getattr(pyarrow, kind)())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 2000
    ran = subprocess.run(
        [sys.executable, "-c", READ_BOMB, str(tmp_path / "t.parquet")], capture_output=True, text=True
    )
    assert ran.stdout == "decompression_bomb {'too_large'} True\n", ran.stderr


# ---- the stages ----


def test_files_are_read_by_what_their_names_tell_or_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "a.TXT").write_bytes(BOM + b"from\r\nWindows")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "t.csv").write_bytes(FILES["plain.csv"])
    source = DocumentSource(files=[str(tmp_path / "*")], val_fraction=0.4)
    found = [*read_documents(source, "train"), *read_documents(source, "val")]
    assert sorted(found) == sorted(["from\nWindows", "packed", *TEXTS])
    for name, message in {
        "x.png": "x.png: its name does not tell what it holds; .* ends in one of .txt",
        "x.tar.gz": "x.tar.gz: its name does not tell",
        "x": "x: its name does not tell",
        "x.HTML": "x.HTML holds html, which has to be taken apart .* recipe under `sources`",
        "x.xml.bz2": "x.xml.bz2 holds mediawiki",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        words = ["--files", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
        with pytest.raises(SystemExit, match=message):
            train_tokenizer(words)
        with pytest.raises(SystemExit, match=message):
            prepare_data([*words, "--tokenizer", "none"])
        assert not (tmp_path / "out").exists()


@pytest.fixture
def with_broken_names(tmp_path: Path) -> Iterator[Path]:
    r"""Files whose texts, addresses, ids and names hold what UTF-8 cannot write, good rows beside them."""
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [{"text": f"row {number}", "url": f"http://a/{number}", "id": f"id{number}"} for number in range(40)]
    rows[3] |= {"url": "http://a/\ud83d"}
    rows[5] |= {"id": "\udc80 5"}
    rows[7] |= {"text": "half \ud83d pair"}
    rows[9] |= {"license": "\ud83d", "text": ["no text"], "id": "\ud83d 9"}
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / b"caf\xe9.txt".decode("utf-8", "surrogateescape")).write_text("a file with a name of old")
    (folder / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_text("x")
    yield folder


def test_a_row_that_utf8_cannot_write_does_not_end_the_run(
    with_broken_names: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"question": "half \ud83d of " + " ".join("abcdefghijklmnop")}) + "\n")
    recipe = {
        "sources": [{"name": "it", "files": str(with_broken_names)}],
        "steps": ["normalize", {"decontaminate": {"files": str(evaluation)}}, "exact_duplicates"],
        "tasks": 1,
        "shards": 1,
        "workers": 1,
        "val_fraction": 0.3,
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "out")]
    prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    dropped = {reason: found["documents"] for reason, found in report["dropped"].items()}
    assert dropped == {"no_text": 1, "unknown_format": 1} and report["total"]["documents_out"] == 40
    rows = [
        row for path in (tmp_path / "out").glob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    assert {"http://a/\ufffd"} == {row["url"] for row in rows if "\ufffd" in row["url"]} and len(rows) == 40
    assert {"\ufffd 5", "caf\ufffd.txt"} <= {row["id"] for row in rows}
    assert "caf\ufffd.png" in (tmp_path / "out" / "data_report.html").read_text()
