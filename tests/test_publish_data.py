"""What is published is complete, can be streamed, and holds no text that was dropped."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.data.batches import load_shards
from training.data.mixture import StreamedWindows
from training.prepare_data import main as prepare_data
from training.publish_data import main as publish_data


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def prepare(tmp_path: Path, tokenizer: Path, *, sources: bool) -> Path:
    """Make shards, of text as it is or by a recipe that drops a secret."""
    rows = [{"text": f"Row {i} of a table that is not long."} for i in range(60)] + [{"text": "my secret"}] * 2
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--tokenizer", str(tokenizer), "--output_dir", str(tmp_path / "data")]
    if sources:
        source = {"name": "rows", "files": str(tmp_path / "t.jsonl"), "license": "mit"}
        steps = [{"gopher_quality": {"min_doc_words": 4, "min_stop_words": 0, "min_avg_word_length": 2}}]
        recipe = {"sources": [source], "steps": steps, "tasks": 1, "shards": 2, "workers": 1}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
        prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
    else:
        prepare_data(["--files", str(tmp_path / "t.jsonl"), *words])
    return tmp_path / "data"


@pytest.mark.parametrize("sources", [False, True])
def test_the_folder_can_be_streamed_and_tells_what_it_is(tmp_path: Path, tokenizer: Path, sources: bool) -> None:
    data, folder = prepare(tmp_path, tokenizer, sources=sources), tmp_path / "published"
    publish_data(["--data", str(data), "--tokenizer", str(tokenizer), "--output_dir", str(folder)])
    original, published = load_shards(data, "train"), load_shards(folder, "train")
    whole = slice(0, len(original.tokens))
    assert (published.tokens[whole] == original.tokens[whole]).all() and (published.starts == original.starts).all()
    streamed = StreamedWindows(f"file://{folder}", 16, 0)
    assert streamed.held_out().num_bytes == load_shards(data, "val").num_bytes
    assert streamed.batch(np.arange(4))["labels"].shape == (4, 16)
    assert len(AutoTokenizer.from_pretrained(folder / "tokenizer")) == published.vocab_size
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == ("mit" if sources else "other") and "tokenized" in card.data.tags
    for path in folder.rglob("*"):
        assert path.suffix in (".bin", ".npy", ".parquet") or path.is_dir() or "secret" not in path.read_text()
    if sources:
        assert "gopher" in json.loads((folder / "data_report.json").read_text())["recipe"][0]["step"]
        assert "secret" in (data / "data_report.json").read_text()


def test_what_would_not_work_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(SystemExit, match="give --repo_id to upload"):
        publish_data(["--data", "x", "--tokenizer", str(tokenizer)])
    with pytest.raises(SystemExit, match="holds no finished token shards"):
        publish_data(["--data", str(tmp_path), "--tokenizer", str(tokenizer), "--output_dir", str(tmp_path / "p")])
    data = prepare(tmp_path, tokenizer, sources=False)
    words = ["--data", str(data), "--output_dir", str(tmp_path / "p"), "--tokenizer"]
    with pytest.raises(SystemExit, match="is no folder of a tokenizer"):
        publish_data([*words, str(tmp_path)])
    (data / "train.bin").write_bytes((data / "train.bin").read_bytes()[:-2])
    with pytest.raises(SystemExit, match=r"train\.bin has .* bytes, which is not"):
        publish_data([*words, str(tokenizer)])
    assert not (tmp_path / "p").exists()
