"""Every kind of source becomes documents, and whatever is broken is named and costs no more than itself."""

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard
from archives import PARAGRAPH, WIKI, page, warc
from datatrove.data import Document
from transformers import PreTrainedTokenizerBase
from warcio.warcwriter import WARCWriter

from training.corpus.readers.tables import Bad
from training.corpus.readers.unit import read_unit
from training.corpus.readers.wiki import strip_wikitext
from training.corpus.recipe import list_units, read_sources, read_steps

LIMIT = 100_000
ROOT = Path(__file__).parent.parent


def read(pattern: Path | str, limit: int = LIMIT, **settings: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    """Return the documents of a source, and reason and id of what is none."""
    (source,) = read_sources([{"name": "it", "files": str(pattern), **settings}])
    found = [record for unit in list_units([source], 1) for record in read_unit(unit, limit)]
    documents = [record for record in found if isinstance(record, Document)]
    return documents, [(record.reason, record.id) for record in found if isinstance(record, Bad)]


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_text_tables_and_their_compressions(tmp_path: Path, pack: Any) -> None:
    suffix = {None: "", gzip.compress: ".gz", bz2.compress: ".bz2"}.get(pack, ".zst")
    files = {
        "a.txt": "eins\r\nzwei",
        "b.md": "# drei",
        "c.jsonl": '{"text": "vier", "id": "own"}\n\n{"text": "f\\u00fcnf", "license": "mit"}\n',
        "d.csv": 'id,text\n7,"sechs, und\nmehr"\n',
        "e.tsv": "text\tx\nsieben\t1\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}{suffix}").write_bytes(pack(text.encode()) if pack else text.encode())
    documents, bad = read(tmp_path, license="cc0-1.0")
    assert texts(documents) == ["eins\nzwei", "# drei", "vier", "fünf", "sechs, und\nmehr", "sieben"] and not bad
    assert [document.id for document in documents[2:5]] == ["own", f"c.jsonl{suffix}#3", "7"]
    assert {document.metadata["source"] for document in documents} == {"it"}
    assert [document.metadata["license"] for document in documents[2:4]] == ["cc0-1.0", "mit"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"body": ["one", None, "", "four"], "id": [1, 2, 3, 4], "other": [0, 0, 0, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    documents, bad = read(tmp_path / "t.parquet", text_column="body")
    assert texts(documents) == ["one", "four"] and bad == [("no_text", "2"), ("empty", "3")]


def test_what_is_broken_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(20_000)).encode()
    files = {
        "a.jsonl": b'{"text": "good"}\n{"text": \n{"txt": 1}\n[1]\n{"text": 5}\n{"text": " "}\n1\n{"text": "\xff"}\n',
        "b.jsonl.gz": gzip.compress(rows)[:-30_000],
        "c.txt": "caf\xe9".encode("latin-1"),
        "d.txt": b"",
        "e.txt": b"\x89PNG\0\0",
        "f.parquet": b"PAR1 and no more",
        "g.jsonl.gz": b"no gzip at all",
        "h.png": b"x",
        "i.jsonl": b'{"text": "' + b"x" * 300_000 + b'"}\n{"text": "after"}\n{"text": "half \\ud83d pair"}\n',
        "j.csv": b'text\nfine\n"never closed\n' + b"line\n" * 40_000,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    documents, bad = read(tmp_path)
    reasons = {name: [reason for reason, id in bad if id.startswith(name)] for name in files}
    assert reasons == {
        "a.jsonl": ["invalid_json", "no_text", "no_text", "no_text", "empty", "no_text", "invalid_utf8"],
        "b.jsonl.gz": ["corrupt_file"],
        "c.txt": ["invalid_utf8"],
        "d.txt": ["empty"],
        "e.txt": ["binary"],
        "f.parquet": ["corrupt_file"],
        "g.jsonl.gz": ["corrupt_file"],
        "h.png": ["unknown_format"],
        "i.jsonl": ["line_too_long"],
        "j.csv": ["invalid_csv"],
    }
    found = texts(documents)
    assert {"good", "after", "half \ufffd pair", "fine"} <= set(found)
    assert found.count("row 0") == 1 and sum(text.startswith("row") for text in found) > 5000


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_off_is_read_to_there_and_one_of_many_parts_to_its_end(
    tmp_path: Path, suffix: str
) -> None:
    pack: Any = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
        suffix, zstandard.ZstdCompressor().compress
    )
    rng = random.Random(0)
    rows = [json.dumps({"text": f"{i} {rng.random()}"}) + "\n" for i in range(60_000)]
    parts = [pack("".join(half).encode()) for half in (rows[:50_000], rows[50_000:])]
    (tmp_path / f"whole.jsonl{suffix}").write_bytes(b"".join(parts))
    documents, bad = read(tmp_path / f"whole.jsonl{suffix}")
    assert len(documents) == len(rows) and not bad
    (tmp_path / f"cut.jsonl{suffix}").write_bytes(parts[0][: len(parts[0]) * 9 // 10])
    documents, bad = read(tmp_path / f"cut.jsonl{suffix}")
    assert len(documents) > 10_000 and [reason for reason, _ in bad][-1] == "corrupt_file"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, suffix: str) -> None:
    line = b'{"text": "' + b"a" * 50_000 + b'"}\n'
    pack: Any = gzip.open if suffix == ".gz" else zstandard.open
    with pack(tmp_path / f"bomb.jsonl{suffix}", "wb") as file:
        for _ in range(2500):  # 125 MB in 0.1
            file.write(line)
    documents, bad = read(tmp_path)
    assert bad == [("decompression_bomb", f"bomb.jsonl{suffix}")] and len(documents) < 1500


def test_a_text_longer_than_the_limit_is_cut_at_blank_lines_and_an_endless_line_is_left_out(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i}\n\n" for i in range(1000))
    (tmp_path / "long.txt").write_text(text)
    documents, bad = read(tmp_path / "long.txt", limit=1000)
    assert "".join(texts(documents)) == text and not bad
    assert all(len(piece) <= 1000 and piece.endswith("\n\n") for piece in texts(documents))
    assert len({document.id for document in documents}) == len(documents)
    (tmp_path / "endless.txt").write_text("before\n" + "x" * 5000 + "\nafter\n")
    documents, bad = read(tmp_path / "endless.txt", limit=1000)
    assert "".join(texts(documents)) == "before\nafter\n" and [reason for reason, _ in bad] == ["line_too_long"]


def test_hub_data_sets_are_streamed_and_shared_between_tasks(tmp_path: Path) -> None:
    for part in "ab":
        rows = "".join(json.dumps({"body": f"{part}{i}"}) + "\n" for i in range(5))
        (tmp_path / f"{part}.jsonl").write_text(rows)
    (source,) = read_sources([{"name": "hub", "dataset": str(tmp_path), "text_column": "body", "license": "mit"}])
    for tasks in (1, 2, 3):
        units = list_units([source], tasks)
        found = [record for unit in units for record in read_unit(unit, LIMIT)]
        assert len(units) == tasks and sorted(record.text for record in found) == [
            f"{p}{i}" for p in "ab" for i in range(5)
        ]
        assert len({record.id for record in found}) == 10 and found[0].metadata["license"] == "mit"


def test_files_may_lie_on_object_storage() -> None:
    import fsspec

    storage = fsspec.filesystem("memory")
    storage.pipe("/sources/a/1.jsonl.gz", gzip.compress(b'{"text": "far away"}\n'))
    storage.pipe("/sources/a/.hidden.txt", b"no")
    documents, bad = read("memory://sources/**")
    assert texts(documents) == ["far away"] and documents[0].id == "a/1.jsonl.gz#1" and not bad


# ---- formats ----


def test_web_archives(tmp_path: Path) -> None:
    warc(
        tmp_path / "crawl.warc.gz",
        ("http://a.org/1", "200 OK", "text/html; charset=utf-8", page(PARAGRAPH + "One é.")),
        ("http://a.org/2", "200 OK", "text/html; charset=iso-8859-1", page(PARAGRAPH + "Two é.", "latin-1")),
        ("http://a.org/3", "404 Not Found", "text/html", page("no")),
        ("http://a.org/4", "200 OK", "image/png", b"\x89PNG"),
        ("http://a.org/5", "200 OK", "text/html", b"<html><body></body></html>"),
        ("http://a.org/6", "200 OK", "text/html", page("x" * 200_000)),
    )
    documents, bad = read(tmp_path / "crawl.warc.gz")
    assert [document.metadata["url"] for document in documents] == ["http://a.org/1", "http://a.org/2"]
    assert "One é." in documents[0].text and "Two é." in documents[1].text and "menu" not in documents[0].text
    assert [reason for reason, _ in bad] == ["http_status", "not_html", "no_main_text", "too_large"]


def test_a_web_archive_that_is_cut_off_is_noticed_wherever_the_cut_is(tmp_path: Path) -> None:
    warc(
        tmp_path / "whole.warc.gz",
        *((f"http://a.org/{i}", "404 Not Found", "text/html", page("x" * 500)) for i in (1, 2)),
    )
    whole = (tmp_path / "whole.warc.gz").read_bytes()
    for cut in range(20, len(whole) - 10, 41):
        (tmp_path / "cut.warc.gz").write_bytes(whole[:cut])
        documents, bad = read(tmp_path / "cut.warc.gz")
        assert not documents and "corrupt_file" in [reason for reason, _ in bad], f"{cut} of {len(whole)} bytes"


def test_wet_files(tmp_path: Path) -> None:
    with (tmp_path / "crawl.warc.wet.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        body = io.BytesIO("Plain é text".encode())
        record = writer.create_warc_record(
            "http://a.org/", "conversion", body, warc_content_type="text/plain", length=len(body.getvalue())
        )
        writer.write_record(record)
    documents, bad = read(tmp_path / "crawl.warc.wet.gz")
    assert texts(documents) == ["Plain é text"] and not bad


def test_wiki_dumps(tmp_path: Path) -> None:
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress((WIKI + "</mediawiki>").encode()))
    documents, bad = read(tmp_path / "dump.xml.bz2")
    assert len(documents) == 1 and documents[0].id == "dump.xml.bz2/Mill"
    text = documents[0].text
    assert text.startswith("Mill\n\nA mill grinds corn.") and "History" in text and "Old & new." in text
    assert not any(word in text for word in ("Source", "Infobox", "thumb", "Category", "[", "{", "'''"))
    assert bad == [("not_an_article", "dump.xml.bz2/Talk:Mill"), ("redirect", "dump.xml.bz2/Mills")]
    (tmp_path / "cut.xml").write_text(WIKI + "<page><title>Half")
    documents, bad = read(tmp_path / "cut.xml")
    assert len(documents) == 1 and bad[-1] == ("corrupt_file", "cut.xml")


def test_wikitext_with_tables() -> None:
    assert strip_wikitext("Before.\n{| class=x\n|a||b\n|}\nAfter.") == "Before.\n\nAfter."


def test_gutenberg_books_lose_header_and_footer(tmp_path: Path) -> None:
    book = (
        "The Project Gutenberg eBook\n\nTitle: A Mill\n\n*** START OF THE PROJECT GUTENBERG EBOOK A MILL ***\n"
        "\nChapter one.\n\n*** END OF THE PROJECT GUTENBERG EBOOK A MILL ***\nLicense terms\n"
    )
    (tmp_path / "1.txt").write_text(book)
    (document,), bad = read(tmp_path, type="gutenberg")
    assert document.text == "Chapter one." and document.metadata["title"] == "A Mill" and not bad


def test_source_trees_honour_licences(tmp_path: Path) -> None:
    mit = "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of this"
    for name, text in {
        "LICENSE": mit,
        "src/a.py": "print(1)",
        "src/b.rs": "fn main() {}",
        "src/data.bin": "x",
        "vendor/COPYING": "GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007",
        "vendor/c.py": "print(2)",
        "vendor/d.py": "# SPDX-License-Identifier: Apache-2.0\nprint(3)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    documents, bad = read(tmp_path, type="code", languages=["python"], licenses=["mit", "apache-2.0"])
    assert {document.id: document.metadata["license"] for document in documents} == {
        "src/a.py": "mit",
        "vendor/d.py": "apache-2.0",
    }
    assert ("license", "vendor/c.py") in bad and ("other_language", "src/b.rs") in bad and len(bad) == 5


# ---- the recipe ----


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": "x"}, "must be a mapping with a `name`"),
        ({"name": "a"}, "exactly one of files, dataset and stories; it has none"),
        ({"name": "a", "files": "x", "stories": 3}, "it has files and stories"),
        ({"name": "a", "file": "x"}, "'file' is not known; did you mean 'files'"),
        ({"name": "a", "files": "x", "type": "gutenbreg"}, "did you mean 'gutenberg'"),
        ({"name": "a", "files": "x", "languages": ["pyhton"]}, "'pyhton'; did you mean 'python'"),
        ({"name": "a", "files": "x", "weight": -1}, "weight -1; it must be a number above 0"),
    ],
)
def test_mistakes_in_sources_are_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sources([source])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["gopher"], "'gopher' is not a step; did you mean 'gopher_quality'"),
        (["near_duplicates", "normalize"], "put exact_duplicates and near_duplicates last"),
        ([{"language": {"sources": ["b"]}}], "step language, sources: 'b' is not known"),
        ([{"language": ["en"]}], "its options must be"),
        ([["x"]], "a step is a name"),
    ],
)
def test_mistakes_in_steps_are_named(steps: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_steps(steps, read_sources([{"name": "a", "stories": 1}]))


def test_files_of_the_command_line_are_those_of_the_one_source_without_a_text() -> None:
    books: dict[str, Any] = {"name": "books", "type": "gutenberg"}
    told: dict[str, Any] = {"name": "told", "stories": 3}
    found = read_sources([books, told], ["a.txt", "b/"])
    assert [(one.name, one.files, one.type, one.stories) for one in found] == [
        ("books", ("a.txt", "b/"), "gutenberg", 0),
        ("told", (), None, 3),
    ]
    for sources, number in (([told], 0), ([books, books | {"name": "more"}], 2)):
        with pytest.raises(ValueError, match=f"for the one source that names no text of its own.* {number} name none"):
            read_sources(sources, ["a.txt"])


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.txt matches no file"):
        read(tmp_path / "none.txt")


@pytest.mark.slow
def test_the_processes_that_read_pages_end_with_the_run(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Whoever stayed behind would hold the pipe, which is read to its end here."""
    pages = [(f"http://a.org/{i}", "200 OK", "text/html", page(f"{PARAGRAPH} {i}")) for i in range(8)]
    warc(tmp_path / "crawl.warc.gz", *pages)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = {"sources": [{"name": "web", "files": str(tmp_path / "*.warc.gz")}], "val_fraction": 0.3, "tasks": 2}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "training.prepare_data", "--config", str(tmp_path / "data.yaml")]
    command += ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "8 documents in" in done.stdout, done.stderr
