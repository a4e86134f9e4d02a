"""What is published is complete, can be streamed, and holds no text that was dropped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch.hub.client import Target
from hf_scratch.hub.publish_data import build_folder, publish_data
from training.engine.mixture import StreamedWindows
from training.engine.token_shards import load_shards
from training.prepare_data import main as prepare_data

ROOT = Path(__file__).parent.parent
TARGET = Target("user/shards", "dataset")


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
        source = {"name": "rows", "files": str(tmp_path / "t.jsonl"), "license": "public domain"}
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
    build_folder(data, folder)
    original, published = load_shards(data, "train"), load_shards(folder, "train")
    whole = slice(0, len(original.tokens))
    assert (published.tokens[whole] == original.tokens[whole]).all() and (published.starts == original.starts).all()
    streamed = StreamedWindows(f"file://{folder}", 16, 0)
    assert streamed.held_out().num_bytes == load_shards(data, "val").num_bytes
    assert streamed.batch(np.arange(4))["labels"].shape == (4, 16)
    assert len(AutoTokenizer.from_pretrained(folder / "tokenizer")) == published.vocab_size
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "other" and "tokenized" in card.data.tags  # the only name that the Hub has for it
    assert card.data.to_dict().get("license_name") == ("public-domain" if sources else None)
    for path in folder.rglob("*"):
        assert path.suffix in (".bin", ".npy", ".parquet") or path.is_dir() or "secret" not in path.read_text()
    if sources:
        assert "gopher" in json.loads((folder / "data_report.json").read_text())["recipe"][0]["step"]
        assert "secret" in (data / "data_report.json").read_text()


def test_no_path_and_no_secret_becomes_public_and_shards_are_not_copied(tmp_path: Path, tokenizer: Path) -> None:
    data = prepare(tmp_path, tokenizer, sources=False)
    links = []

    def say(line: str) -> None:
        links.append((data / "train.bin").stat().st_nlink)

    publish_data(data, TARGET, None, say, dry_run=True)
    assert set(links) == {2} and (data / "train.bin").stat().st_nlink == 1 and not list(tmp_path.glob(".publish-*"))
    for found, what in (("in /home/me/evaluations", "a path"), (f"by hf_{'x' * 30}", "looks like a secret")):
        (data / "dataset_card.md").write_text(f"# Shards\nmade {found}\n")
        with pytest.raises(ValueError, match=f"because of README.md, line 2: {what}"):
            publish_data(data, TARGET, None, say)


READ_BACK = """
import sys
from pathlib import Path
import numpy as np
from training.engine.mixture import StreamedWindows

here, there = (StreamedWindows(url, 16, 0) for url in (Path(sys.argv[1]).as_uri(), "hf://datasets/user/shards"))
for rows in np.arange(160).reshape(20, 8):  # more than an epoch
    assert (here.batch(rows)["input_ids"] == there.batch(rows)["input_ids"]).all()
assert (here.held_out().tokens == there.held_out().tokens).all() and there.complete
print("the same tokens")
"""


@pytest.mark.slow
def test_what_was_pushed_is_read_back_through_the_hub(
    tmp_path: Path, tokenizer: Path, hub: HubServer, run_online: Callable[..., Any]
) -> None:
    data = prepare(tmp_path, tokenizer, sources=True)
    command = ("-m", "hf_scratch.cli", "publish-data", tmp_path, "--repo-id", "user/shards")
    looked = run_online(*command, "--dry-run")
    assert looked.returncode == 0 and "train-00001.bin" in looked.stdout and not hub.repos, looked.stderr
    hub.commit(hub.create("user/shards", "dataset"), "main", "old", "", {"train-00002.json": b"{}"})
    hub.fail("POST .*/commit/main", 503)
    pushed = run_online(*command)
    assert pushed.returncode == 0 and "/datasets/user/shards" in pushed.stdout, pushed.stderr
    files = hub.files("user/shards", kind="dataset")
    assert {"train-00000.bin", "train-00001.parquet", "val.bin", "README.md", "data_report.json"} <= set(files)
    assert "train-00002.json" not in files and "tokenizer/tokenizer.json" in files
    assert len(hub.repos["dataset", "user/shards"].history["main"]) == 3
    read = run_online("-c", READ_BACK, data, PYTHONPATH=str(ROOT))
    assert read.stdout == "the same tokens\n", read.stderr


@pytest.mark.slow
def test_private_shards_do_not_go_where_anybody_reads(
    tmp_path: Path, tokenizer: Path, hub: HubServer, run_online: Callable[..., Any]
) -> None:
    prepare(tmp_path, tokenizer, sources=False)
    repo = hub.create("user/shards", "dataset")
    refused = run_online("-m", "hf_scratch.cli", "publish-data", tmp_path, "--repo-id", "user/shards", "--private")
    assert refused.returncode == 1 and "the dataset user/shards is there and public" in refused.stderr
    assert len(repo.commits) == 1 and not hub.lfs


def test_what_would_not_work_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished token shards"):
        publish_data(tmp_path, TARGET, None, print)
    data = prepare(tmp_path, tokenizer, sources=False)
    with pytest.raises(ValueError, match="is not a name that the Hub takes"):
        publish_data(tmp_path, Target("shards", "dataset"), None, print)
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"vocab_size": 1000}))
    with pytest.raises(ValueError, match="the shards were made with 1000"):
        publish_data(data, TARGET, None, print)
    (data / "meta.json").write_text(json.dumps(meta))
    (data / "train.bin").write_bytes((data / "train.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train\.bin has .* bytes, which is not"):
        publish_data(data, TARGET, None, print)
    tokenizer.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="the tokenizer of the shards, .* cannot be read"):
        publish_data(data, TARGET, None, print)
