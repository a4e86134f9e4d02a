"""Files, folders, pages and data sets: each is found by its name, read once, and as it was at the beginning."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archives import PARAGRAPH, page, warc
from datatrove.data import Document
from hub_server import HubServer
from transformers import PreTrainedTokenizerBase

from training.corpus.readers.plain import read_documents
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import DocumentSource, expand_files, list_units, read_sources
from training.corpus.shards import key_of, spread
from training.engine.mixture import data_inputs
from training.prepare_data import main as prepare_data

ROOT = Path(__file__).parent.parent


def labels(*patterns: Any) -> list[str]:
    sources = read_sources([{"name": "it", "files": [str(pattern) for pattern in patterns]}])
    return [unit.label for unit in list_units(sources, 1)]


# ---- files ----


def test_a_file_is_read_once_however_many_patterns_match_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    (tmp_path / "other.txt").symlink_to(tmp_path / "a.txt")
    patterns = [tmp_path / "*.txt", tmp_path / "b.txt", tmp_path, f"{tmp_path}/../{tmp_path.name}/c.txt"]
    assert labels(*patterns) == ["a.txt", "b.txt", "c.txt"]
    names = [Path(path).name for path in expand_files([str(pattern) for pattern in patterns])]
    assert names == ["a.txt", "b.txt", "c.txt"]
    monkeypatch.chdir(tmp_path)
    assert expand_files(["./*.txt", "b.txt"]) == ["a.txt", "b.txt", "c.txt"]  # and no path of this machine
    source = DocumentSource(files=["*.txt", "a.txt"], val_fraction=0.5)
    assert len([*read_documents(source, "train"), *read_documents(source, "val")]) in (3, 6)  # 6: each is cut


@pytest.mark.parametrize("name", ["old [1].txt", "what?.txt", "all*.txt", "[ab].txt"])
def test_what_is_there_by_its_very_name_is_no_glob(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "books [1890]" / "x"
    folder.mkdir(parents=True)
    (folder / name).write_text("text")
    (folder / "a.txt").write_text("another")
    assert labels(folder / name) == [name]
    assert [Path(path).name for path in expand_files([str(folder / name)])] == [name]
    assert labels(folder / "*.txt") == sorted([name, "a.txt"])
    assert labels(folder) == sorted([name, "a.txt"])
    assert len(expand_files([str(tmp_path / "books [1890]" / "**" / "*.txt")])) == 2
    assert labels(folder / "[a-b].txt") == ["a.txt"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert labels("~/a.txt") == labels("~/*.txt") == ["a.txt"]
    assert expand_files(["~/*.txt"]) == [str(tmp_path / "a.txt")]


def test_a_folder_with_an_equals_sign_has_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=3", "lr", "other"):
        (tmp_path / name).mkdir()
    assert data_inputs(["lr=3", "other=2"]) == {"data": ["lr=3", "other"], "weights": "1.0 2.0"}
    assert data_inputs(["lr=3=2", "other"]) == {"data": ["lr=3", "other"], "weights": "2.0 1.0"}


# ---- pages ----

QUOTED = PARAGRAPH + "She said \u201cyes\u201d \u2013 for 5 \u20ac."


@pytest.mark.parametrize(
    ("header", "head", "encoding", "text"),
    [
        ("text/html; charset=iso-8859-1", "", "cp1252", QUOTED),
        ("text/html; charset=us-ascii", "", "cp1252", QUOTED),
        ("text/html", '<meta charset="windows-1252">', "cp1252", QUOTED),
        ("text/html", "<META http-equiv=Content-Type content='text/html; charset=ISO-8859-1'>", "cp1252", QUOTED),
        ("text/html", "<meta charset=windows-1251>", "cp1251", PARAGRAPH + "Мельник и лиса"),
        ("text/html", "<meta charset=shift_jis>", "cp932", PARAGRAPH + "\u6797\u2460の狐"),
        ("text/html; charset=gb2312", "", "gb18030", PARAGRAPH + "朱镕基"),
        ("text/html; charset=utf-8", "<meta charset=iso-8859-1>", "utf-8", QUOTED),
        ("text/html; charset=iso-8859-1", "", "utf-8-sig", QUOTED),
        ("text/html", "", "utf-16", QUOTED),
        ("text/html; charset=nonsense", "<meta charset=utf-8>", "utf-8", QUOTED),
    ],
)
def test_a_page_is_decoded_as_browsers_do(tmp_path: Path, header: str, head: str, encoding: str, text: str) -> None:
    html = page(text).decode().replace("<html>", f"<html><head>{head}</head>")
    warc(tmp_path / "crawl.warc.gz", ("http://a.org/1", "200 OK", header, html.encode(encoding)))
    (tmp_path / "page.html").write_bytes(html.encode(encoding))
    for path in ("crawl.warc.gz", "page.html") if "charset" not in header else ("crawl.warc.gz",):
        (unit,) = list_units(read_sources([{"name": "it", "files": str(tmp_path / path)}]), 1)
        (document,) = read_unit(unit, 100_000)
        assert isinstance(document, Document) and text.removeprefix(PARAGRAPH) in document.text


# ---- order ----


def test_equal_documents_do_not_lie_side_by_side(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    keys = np.array([key_of("twin", 0, 0)] * 50 + [key_of(str(i), 0, 0) for i in range(950)], dtype=np.uint64)
    spreaded = spread(keys)
    assert len(set(spreaded.tolist())) == 1000 and (spreaded[50:] == keys[50:]).all()
    places = np.sort(np.argsort(np.argsort(spreaded))[:50])
    assert places[-1] - places[0] > 500 and (np.diff(places) == 1).sum() < 15

    rows = [{"text": f"row {number}"} for number in range(200)] + [{"text": "the twin"}] * 40
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    streams = []
    for tasks in (1, 3):  # files of one task each: the order is that of the texts alone
        source = {"name": "it", "files": str(tmp_path / "t.jsonl")}
        recipe = {"sources": [source], "tasks": tasks, "shards": 1, "workers": 1, "val_fraction": 0.1}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
        words = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / f"out{tasks}")]
        prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
        streams.append((tmp_path / f"out{tasks}" / "train-00000.bin").read_bytes())
    assert streams[0] == streams[1]
    tokens = np.frombuffer(streams[0], dtype="uint16")
    documents = ["".join(map(chr, part)) for part in np.split(tokens, np.flatnonzero(tokens == 0))[1:-1]]
    twin = max(set(documents), key=documents.count)
    pairs = sum(a == b == twin for a, b in zip(documents, documents[1:], strict=False))
    assert documents.count(twin) == 40 and pairs < 20


# ---- the Hub ----

READ = """
import sys
from datatrove.io import get_datafolder
from training.corpus.readers.plain import read_documents
from training.corpus.recipe import DocumentSource
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import list_units, read_sources
from training.corpus.readers.hub import pin

for folder in sys.argv[1:]:
    sources = pin(read_sources([{"name": "it", "dataset": "user/rows"}]), get_datafolder(folder))
    texts = sorted(record.text for unit in list_units(sources, 2) for record in read_unit(unit, 1000))
    print(sources[0].revision, *texts)
source = DocumentSource(dataset="user/rows", val_fraction=0.01)
print(*{text[:3] for text in read_documents(source, "train")})
try:
    pin(read_sources([{"name": "it", "dataset": "user/none"}]), get_datafolder(folder + "3"))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_run_reads_the_commit_that_it_began_with(
    tmp_path: Path, hub: HubServer, run_online: Callable[..., Any]
) -> None:
    repo = hub.create("user/rows", "dataset")
    old, new = ("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(3)) for name in ("old", "new"))
    first = hub.commit(repo, "main", "old", "", {"t.jsonl": old.encode()})
    begun = run_online("-c", READ, tmp_path / "one", PYTHONPATH=str(ROOT))
    assert begun.stdout.splitlines()[:2] == [f"{first} old 0 old 1 old 2", "old"], begun.stderr
    assert "the data set user/none cannot be read from the Hub (" in begun.stdout
    second = hub.commit(repo, "main", "new", "", {"t.jsonl": new.encode()})
    later = run_online("-c", READ, tmp_path / "one", tmp_path / "two", PYTHONPATH=str(ROOT))
    expected = [f"{first} old 0 old 1 old 2", f"{second} new 0 new 1 new 2", "new"]
    assert later.stdout.splitlines()[:3] == expected, later.stderr
