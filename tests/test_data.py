"""From text to rows of tokens: nothing is lost, held out text stays held out, bad files are named."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from hf_scratch.hub.files import hash_file
from training.corpus.readers.plain import read_documents
from training.corpus.recipe import DocumentSource
from training.engine.batches import IGNORE, PackedDocuments, Windows
from training.engine.token_shards import Shards, load_shards
from training.prepare_data import DataConfig, describe_tokenizer, write_split
from training.prepare_data import main as prepare_data
from training.stage import files as stage_files
from training.stage.files import read_json
from training.train_tokenizer import main as train_tokenizer

TEXTS = ["a hen and a cat", "two words", "x" * 90, "the end <|endoftext|> no", "hello there", "é🦊"]


def both(source: DocumentSource) -> tuple[list[str], list[str]]:
    return list(read_documents(source, "train")), list(read_documents(source, "val"))


def test_one_document_is_cut_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "play.txt"
    file.write_text("0123456789")
    assert both(DocumentSource(files=[str(file)], val_fraction=0.2)) == (["01234567"], ["89"])


def test_several_documents_are_split_by_content_whatever_their_files(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(200)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    train, val = both(DocumentSource(files=[str(tmp_path / "*.txt")]))
    assert sorted(train + val) == sorted(texts) and 5 < len(val) < 40
    jsonl = tmp_path / "all.jsonl"
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*reversed(texts), "a new one"]))
    more_train, more_val = both(DocumentSource(files=[str(jsonl)]))
    assert set(val) <= set(more_val) and set(train) <= set(more_train)


def test_parquet_and_another_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "t.parquet")
    source = DocumentSource(files=[str(tmp_path / "t.parquet")], text_column="body")
    assert sorted(sum(both(source), [])) == sorted(TEXTS)


def test_a_column_that_is_not_there_and_a_row_without_text_are_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one", None], "title": ["a", "b"]}), path)
    with pytest.raises(ValueError, match=r"t\.parquet has no column 'text'; name one of body, title by --text_column"):
        both(DocumentSource(files=[str(path)]))
    with pytest.raises(ValueError, match=r"t\.parquet, row 2: expected"):
        both(DocumentSource(files=[str(path)], text_column="body"))
    with pytest.raises(ValueError, match=r"row 1: expected .*'title': 'a'.* by --text_column"):
        both(DocumentSource(dataset=str(tmp_path)))


def test_a_tokenizer_without_a_bos_token_separates_by_its_eos_token(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)))
    for name, changes in (("eos", {"bos_token": None}), ("none", {"bos_token": None, "eos_token": None})):
        tiny_tokenizer.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config | changes))
    words = ["--files", str(tmp_path / "t.jsonl"), "--output_dir", str(tmp_path / "d"), "--tokenizer"]
    prepare_data([*words, str(tmp_path / "eos")])
    assert load_shards(tmp_path / "d", "train").tokens[-1] == tiny_tokenizer.eos_token_id
    config = DataConfig(output_dir="", tokenizer=str(tmp_path / "eos"))
    assert describe_tokenizer(config)[1]["separator"] == tiny_tokenizer.eos_token_id
    with pytest.raises(SystemExit, match="neither a bos nor an eos token"):
        prepare_data([*words, str(tmp_path / "none")])


def test_long_documents_are_tokenized_a_few_at_a_time(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.corpus.split.BATCH_BYTES", 100_000)
    written = []

    def documents() -> Iterator[str]:
        for _ in range(3):
            written.append((tmp_path / "train.bin").stat().st_size)
            yield "fox " * 15_000

    write_split(tmp_path, "train", tiny_tokenizer, documents(), "uint16")
    assert written[:2] == [0, 0] and written[2] > 0


def test_the_stories_need_no_file_and_their_splits_differ() -> None:
    train, val = both(DocumentSource(num_stories=50))
    assert len(train) == 50 and len(val) == 5 and not set(train) & set(val)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "caf\xe9".encode("latin-1"), "is not UTF-8"),
        ("empty.txt", b"  \n", "is empty"),
        ("bad.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: expected"),
        ("null.jsonl", b'{"text": null}\n', "line 1: expected .* remove the row"),
        ("none.jsonl", b"", "holds no text"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        both(DocumentSource(files=[str(tmp_path / name)]))
    assert name in str(error.value)


def test_files_and_rows_without_text_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"a.txt": "one", "b.txt": "", "c.md": " \n\n", "d.txt": "two"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "e.jsonl").write_text('{"text": "three"}\n{"text": ""}\n{"text": "four"}\n')
    train, val = both(DocumentSource(files=[str(tmp_path / "*")], val_fraction=0.5))
    assert sorted(train + val) == ["four", "one", "three", "two"]
    said = capsys.readouterr().out
    assert said.count("left out") == 1 and all(name in said for name in ("b.txt", "c.md", "e.jsonl, line 2"))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="matches no file; check the path"):
        train_tokenizer(["--output_dir", str(tmp_path / "t"), "--files", str(tmp_path / "none.txt")])


def test_shards_hold_every_document_behind_its_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl = tmp_path / "all.jsonl"
    texts = [f"{text} {i}" for i in range(20) for text in TEXTS]
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["--files", str(jsonl)]
    train_tokenizer(["--output_dir", str(tmp_path / "t"), "--vocab_size", "280", *arguments])
    monkeypatch.setattr(stage_files, "LARGE", 100)
    prepare_data(["--output_dir", str(tmp_path / "d"), "--tokenizer", str(tmp_path / "t"), *arguments])
    noted = read_json(tmp_path / "d" / "stage.json")["large_files"]
    assert noted["train.bin"]["sha256"] == hash_file(tmp_path / "d" / "train.bin")

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    decoded = []
    for split in ("train", "val"):
        shards = load_shards(tmp_path / "d", split)
        assert shards.tokens[shards.starts].tolist() == [tokenizer.bos_token_id] * len(shards.starts)
        assert shards.tokens[-1] == tokenizer.bos_token_id and (shards.tokens == tokenizer.bos_token_id).sum() == (
            len(shards.starts) + 1
        )
        parts = np.split(shards.tokens[:-1], shards.starts[1:])
        documents = [tokenizer.decode(part[1:]) for part in parts]
        assert sum(len(text.encode()) for text in documents) == shards.num_bytes
        decoded += documents
    assert sorted(decoded) == sorted(texts)


def stream(lengths: list[int]) -> Shards:
    """Documents of distinct tokens behind separators 0."""
    starts = np.cumsum([0, *(length + 1 for length in lengths[:-1])])
    tokens = np.arange(1, sum(lengths) + len(lengths) + 2)
    tokens[starts] = 0
    tokens[-1] = 0
    return Shards(tokens, starts, num_bytes=1, vocab_size=10**6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(8, 64), st.integers(0, 5))
def test_packing_shows_each_token_once_an_epoch_and_never_mixes_documents(
    lengths: list[int], context: int, seed: int
) -> None:
    shards = stream(lengths)
    rows = PackedDocuments(shards, context, seed)
    seen = []
    for row in range(rows.order.length):
        batch = {key: tensor[0].numpy() for key, tensor in rows.batch(np.array([row])).items()}
        assert len(batch["labels"]) <= context
        used = batch["labels"] != IGNORE
        for i in np.flatnonzero(used):
            if batch["position_ids"][i] > 0:
                assert batch["labels"][i - 1] == batch["input_ids"][i]
        begins = np.flatnonzero(used & (batch["position_ids"] == 0))
        assert all(batch["input_ids"][i] in shards.tokens[shards.starts] or context < 41 for i in begins)
        seen += batch["labels"][used].tolist()
    assert sorted(seen) == sorted(shards.tokens[1:].tolist())


@settings(deadline=None, max_examples=30)
@given(st.integers(60, 400), st.integers(2, 20), st.integers(0, 5))
def test_windows_of_an_epoch_do_not_overlap(length: int, context: int, seed: int) -> None:
    rows = Windows(stream([length]), context, seed)
    for epoch in range(2):
        numbers = np.arange(epoch * rows.order.length, (epoch + 1) * rows.order.length)
        batch = rows.batch(numbers)
        seen = batch["labels"].flatten().tolist()
        assert len(seen) == len(set(seen)) >= length - 2 * context
        assert (batch["labels"][:, :-1] == batch["input_ids"][:, 1:]).all()


def test_rows_depend_on_their_number_alone() -> None:
    for kind in (PackedDocuments, Windows):
        rows = kind(stream([30] * 40), 64, seed=1)
        whole = rows.batch(np.arange(8, 16))
        again = kind(stream([30] * 40), 64, seed=1).batch(np.array([13]))
        width = again["labels"].shape[1]
        assert (whole["labels"][5, :width] == again["labels"][0]).all()
        assert not (kind(stream([30] * 40), 64, seed=2).batch(np.arange(8, 16))["labels"][:, :60]).equal(
            whole["labels"][:, :60]
        )


def test_a_context_longer_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="64 tokens is longer than half of the 42 training tokens; use row_length=5 "):
        Windows(stream([40]), 64, 0)
