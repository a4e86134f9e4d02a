"""Editions, parts and collections of a work are held out together: none is learnt under another title."""

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from planted import paragraphs, sentence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.corpus.split import fraction_of
from training.corpus.works import Runs, choose_held_out, find_runs, join, name_author
from training.prepare_data import main as prepare_data

VAL_FRACTION = 0.2


def tell(rng: random.Random, sentences: int = 60) -> str:
    return paragraphs([sentence(rng) for _ in range(sentences)])


def changed(text: str, rng: random.Random, share: float = 0.05) -> str:
    """Return a text of which a share of the words are others."""
    return re.sub(r"[a-z]+", lambda match: f"{match[0]}x" if rng.random() < share else match[0], text)


def runs_of(text: str, number: int = 13) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + number]) for i in range(len(words) - number + 1)}


def book(title: str, author: str, text: str) -> str:
    mark = f"OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***"
    return f"Title: {title}\n\nAuthor: {author}\n\n*** START {mark}\n\n{text}\n\n*** END {mark}\n"


def described(texts: list[str], authors: list[str] | None = None) -> list[Runs]:
    names = authors or [""] * len(texts)
    return [
        Runs(str(i), f"{i}", len(text), name_author(name), find_runs(text))
        for i, (text, name) in enumerate(zip(texts, names, strict=True))
    ]


@pytest.mark.parametrize("steps", [[], ["works"]])
def test_no_edition_or_part_of_a_held_out_book_is_trained_on(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, steps: list[str]
) -> None:
    rng = random.Random(0)
    texts = [tell(rng) for _ in range(30)]
    out = [text for text in texts if fraction_of(text) < VAL_FRACTION]
    assert len(out) > 2
    books = [book(f"Book {i}", f"Author {i}", text) for i, text in enumerate(texts)]
    books += [book("The Works", "Another", changed(text, rng)) for text in out]
    chapters = "\n\n".join(text[len(text) // 3 : len(text) * 2 // 3] for text in out[:2])
    books.append(book("A Reader", "Various", f"{tell(rng)}\n\n{chapters}\n\n{tell(rng)}"))
    (tmp_path / "books").mkdir()
    for number, content in enumerate(books):
        (tmp_path / "books" / f"{number:02d}.txt").write_text(content)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = {
        "sources": [{"name": "books", "files": str(tmp_path / "books"), "type": "gutenberg"}],
        "steps": steps,
        "val_fraction": VAL_FRACTION,
        "tasks": 2,
        "shards": 1,
        "workers": 1,
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "data")]
    prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
    train, val = (decoded(tmp_path / "data", name, tmp_path / "tokenizer") for name in ("train-00000", "val"))
    leaked = len(runs_of(train) & runs_of(val)) / len(runs_of(val))
    if not steps:
        assert leaked > 0.2  # what the step is for
        return
    assert leaked == 0
    report = json.loads((tmp_path / "data" / "data_report.json").read_text())
    assert report["total"]["documents_out"] == len(books) and report["works"]["of_them_in_training"] == 0
    assert {len(group["documents"]) for group in report["works"]["joined"]} >= {2}
    assert report["splits"]["val"]["documents"] > 1
    assert "works or groups" in (tmp_path / "data" / "data_report.html").read_text()


def decoded(data: Path, name: str, tokenizer: Path) -> str:
    import numpy as np

    meta = json.loads((data / "meta.json").read_text())
    tokens = np.fromfile(data / f"{name}.bin", dtype=meta["dtype"])
    return AutoTokenizer.from_pretrained(tokenizer).decode(tokens.tolist())


def test_text_joins_and_a_rhyme_or_a_title_does_not() -> None:
    rng = random.Random(1)
    rhyme, chapter, tale = tell(rng, 3), tell(rng, 20), tell(rng, 5)
    first, second = f"{tell(rng)} {rhyme}", f"{rhyme} {tell(rng)}"
    whole, reader = f"{tell(rng)} {chapter} {tell(rng)}", f"{tell(rng)} {changed(chapter, rng)}"
    other_signs = tale.upper().replace(".", " _!_ ")
    texts = [first, second, whole, reader, tale, f"{other_signs} {tell(rng)}"]
    assert sorted(map(sorted, join(described(texts)))) == [[0], [1], [2, 3], [4, 5]]


def test_books_of_an_author_are_joined_where_that_is_asked_for() -> None:
    rng = random.Random(2)
    authors = ["E. Nesbit", "Edith Nesbit", "E. [Edith] Nesbit", "Various", "Various", "L. Frank Baum", "", ""]
    documents = described([tell(rng, 20) for _ in authors], authors)
    assert len(join(documents)) == len(authors)
    assert [0, 1, 2] in [sorted(group) for group in join(documents, authors=True)]
    assert len(join(documents, authors=True)) == len(authors) - 2


@pytest.mark.parametrize("val_fraction", [0.001, 0.1, 0.999])
def test_something_is_held_out_and_something_is_learnt(val_fraction: float) -> None:
    rng = random.Random(3)
    documents = described([tell(rng, 2) for _ in range(6)])
    groups = [[0, 1, 2], [3], [4], [5]]
    assert 0 < len(choose_held_out(documents, groups, val_fraction)) < len(groups)
    assert choose_held_out(documents, [[0, 1, 2, 3, 4, 5]], val_fraction) == set()


def test_a_large_group_is_trained_on() -> None:
    rng = random.Random(4)
    documents = described([tell(rng, 2) for _ in range(40)])
    groups = [list(range(20)), *([i] for i in range(20, 40))]
    assert 0 not in choose_held_out(documents, groups, 0.1)


def test_an_unknown_option_is_told(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("word " * 50)
    recipe = {"sources": [{"name": "it", "files": str(tmp_path / "a.txt")}], "steps": [{"works": {"author": True}}]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit, match="works has no option 'author'"):
        prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
