"""What is held out: some of the text always, whole files where there are enough of them, and never nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.corpus.readers.plain import read_documents
from training.corpus.recipe import DocumentSource
from training.corpus.split import fraction_of
from training.engine.token_shards import load_shards
from training.prepare_data import main as prepare_data
from training.train_tokenizer import main as train_tokenizer


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def by_recipe(folder: Path, tokenizer: Path, files: str, **settings: Any) -> dict[str, Any]:
    """Prepare files by a recipe and return its report."""
    recipe = {"tasks": 2, "shards": 1, "workers": 1, "sources": [{"name": "it", "files": files}]} | settings
    (folder / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(tokenizer), "--output_dir", str(folder / "data")]
    prepare_data(["--config", str(folder / "data.yaml"), *words])
    return json.loads((folder / "data" / "data_report.json").read_text())


def decoded(data: Path, split: str, tokenizer: Path) -> list[str]:
    """Return the documents of a split in the order of the shards."""
    shards, words = load_shards(data, split), AutoTokenizer.from_pretrained(tokenizer)
    tokens = shards.tokens[0 : len(shards.tokens)]
    return [words.decode(part[1:]) for part in np.split(tokens[:-1], shards.starts[1:])]


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_few_files_of_which_all_fall_on_one_side_are_cut_at_their_ends(
    tmp_path: Path, tokenizer: Path, number: int, side: str
) -> None:
    texts = (f"Book {i}. " + "once upon a time a fox. " * 40 + f"The end {i}" for i in range(1000))
    books = [text for text in texts if (fraction_of(text) < 0.1) == (side == "val")][:number]
    (tmp_path / "books").mkdir()
    for place, book in enumerate(books):
        (tmp_path / "books" / f"{place}.txt").write_text(book)
    files = str(tmp_path / "books" / "*.txt")
    source = DocumentSource(files=[files])
    train, val = (list(read_documents(source, split)) for split in ("train", "val"))  # type: ignore[arg-type]
    assert [a + b for a, b in zip(train, val, strict=True)] == books
    assert sum(map(len, val)) == pytest.approx(0.1 * sum(map(len, books)), abs=number)
    train_tokenizer(["--files", files, "--vocab_size", "270", "--output_dir", str(tmp_path / "t")])
    prepare_data(["--files", files, "--tokenizer", str(tokenizer), "--output_dir", str(tmp_path / "plain")])
    source_of_two = {"name": "it", "files": files, "weight": 2}
    report = by_recipe(tmp_path, tokenizer, files, val_fraction=0.1, sources=[source_of_two])
    assert report["total"]["documents_out"] == number and not report["dropped"]
    assert report["splits"]["train"]["documents"] == 2 * number and report["splits"]["val"]["documents"] == number
    for data, times in ((tmp_path / "plain", 1), (tmp_path / "data", 2)):
        assert sorted(decoded(data, "train", tokenizer)) == sorted(train * times)
        assert sorted(decoded(data, "val", tokenizer)) == sorted(val)
    assert load_shards(tmp_path / "data", "val").num_bytes == sum(len(text.encode()) for text in val)


def test_pieces_of_a_long_file_are_held_out_together(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(12):
        paragraphs = [f"file {number}, paragraph {i}, {'word ' * 20}\n\n" for i in range(30)]
        (tmp_path / "files" / f"{number}.txt").write_text("".join(paragraphs))
    report = by_recipe(tmp_path, tokenizer, str(tmp_path / "files"), val_fraction=0.3, max_document_bytes=1000)
    sides: dict[str, set[str]] = {}
    pieces = 0
    for path in (tmp_path / "data").glob("*.parquet"):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            sides.setdefault(row["id"].split("#")[0], set()).add(path.name[:3])
            pieces += 1
    assert len(sides) == 12 and pieces > 40 and all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == {"tra", "val"} and report["splits"]["val"]["documents"] > 2
    # The same for a tokenizer that learns from them, which reads the pieces of another length.
    source = DocumentSource(sources=[{"name": "it", "files": str(tmp_path / "files")}], val_fraction=0.3)
    assert len(list(read_documents(source, "val"))) > 0


def test_a_single_file_in_pieces_has_held_out_text(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "long.txt").write_text("".join(f"paragraph {i}, {'word ' * 20}\n\n" for i in range(60)))
    report = by_recipe(tmp_path, tokenizer, str(tmp_path / "long.txt"), val_fraction=0.1, max_document_bytes=1000)
    val, whole = report["splits"]["val"], report["total"]
    assert val["bytes"] == pytest.approx(0.1 * whole["bytes_out"], rel=0.1) and val["documents"] > 3


@pytest.mark.parametrize("val_fraction", ["0", "1", "-0.1", "nan"])
def test_nothing_held_out_is_refused_before_anything_is_done(
    tmp_path: Path, tokenizer: Path, val_fraction: str
) -> None:
    words = ["--output_dir", str(tmp_path / "out"), "--val_fraction", val_fraction]
    for run in (lambda: train_tokenizer(words), lambda: prepare_data([*words, "--tokenizer", str(tokenizer)])):
        with pytest.raises(SystemExit, match="must be above 0 and below 1: the model is judged on"):
            run()
    assert not (tmp_path / "out").exists()
