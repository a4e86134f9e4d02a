"""Shards hold the whole text as the tokenizer's own ids, and whoever reads them with another tokenizer is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from hf_scratch.export.original import read_run
from hf_scratch.hub.client import Target
from hf_scratch.hub.publish_data import build_folder, publish_data
from hf_scratch.token_ids import hash_tokenizer, load_encoder
from training import sft
from training.engine.mixture import open_data
from training.engine.token_shards import load_shards
from training.evaluation.text_bits import read_shards
from training.prepare_data import main as prepare_data
from training.pretrain import main as pretrain
from training.stage.files import read_json, write_json

BLOCKS: dict[str, Any] = {
    "truncation": {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 400},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    },
}


def save(tokenizer: PreTrainedTokenizerBase, folder: Path, **changes: Any) -> Path:
    """Save a tokenizer with other blocks in its tokenizer.json; what is in `model` is set beside the rest."""
    tokenizer.save_pretrained(folder)
    content = read_json(folder / "tokenizer.json")
    content["model"] |= changes.pop("model", {})
    write_json(folder / "tokenizer.json", content | changes)
    return folder


def other(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a tokenizer of the same size in which two letters have each other's ids."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    return save(tokenizer, folder, model={"vocab": vocabulary | {"a": vocabulary["e"], "e": vocabulary["a"]}})


def prepare(folder: Path, tokenizer: Path, *, sources: bool = False) -> Path:
    rows = [{"text": f"Row {i}: once upon a time a little fox lost a red kite."} for i in range(60)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--tokenizer", str(tokenizer), "--output_dir", str(folder / "data")]
    if sources:
        recipe = {"sources": [{"name": "t", "files": str(folder / "t.jsonl")}], "tasks": 1, "shards": 1, "workers": 1}
        (folder / "data.yaml").write_text(yaml.safe_dump(recipe))
        prepare_data(["--config", str(folder / "data.yaml"), *words])
    else:
        prepare_data(["--files", str(folder / "t.jsonl"), *words])
    return folder / "data"


@pytest.mark.parametrize("sources", [False, True])
@pytest.mark.parametrize("changes", [{"truncation": BLOCKS["truncation"]}, BLOCKS, {"model": {"dropout": 0.5}}])
def test_what_a_tokenizer_does_for_training_a_model_is_not_done_to_its_data(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any], sources: bool
) -> None:
    streams = []
    for name, blocks in (("plain", {}), ("changed", changes)):
        (tmp_path / name).mkdir()
        data = prepare(tmp_path / name, save(tiny_tokenizer, tmp_path / name / "tokenizer", **blocks), sources=sources)
        shards = load_shards(data, "train")
        streams.append(shards.tokens[0 : len(shards.tokens)].tolist())
        assert shards.tokenizer == hash_tokenizer(tiny_tokenizer)
    assert streams[0] == streams[1]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (BLOCKS, True),
        ({"decoder": None, "post_processor": None}, True),
        ({"model": {"dropout": 0.1}}, True),
        ({"normalizer": {"type": "Lowercase"}}, False),
        (
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            },
            False,
        ),
        ({"model": {"merges": []}}, False),
    ],
)
def test_the_hash_is_of_what_makes_ids_of_plain_text(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any], same: bool
) -> None:
    changed = load_encoder(str(save(tiny_tokenizer, tmp_path / "changed", **changes)))
    assert (hash_tokenizer(changed) == hash_tokenizer(tiny_tokenizer)) == same
    tiny = load_encoder(str(save(tiny_tokenizer, tmp_path / "tiny")))
    tiny.chat_template, tiny.eos_token = "{{ messages }}", "<|im_end|>"
    assert hash_tokenizer(tiny) == hash_tokenizer(tiny_tokenizer)
    tiny.add_tokens(["<think>"])
    assert hash_tokenizer(tiny) != hash_tokenizer(tiny_tokenizer)


def test_shards_of_another_tokenizer_are_refused_by_all_who_read_them_and_old_ones_are_taken_with_a_warning(
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model: ScratchForCausalLM,
    base: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = prepare(tmp_path, save(tiny_tokenizer, tmp_path / "tokenizer"))
    wrong = other(tiny_tokenizer, tmp_path / "wrong")
    tokenizer = load_encoder(str(wrong))
    sizes = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--context_length", "32"]
    sizes += ["--batch_rows", "2", "--max_steps", "1", "--warmup_steps", "0", "--output_dir", str(tmp_path / "run")]
    build_folder(data, tmp_path / "published")
    tiny_tokenizer.save_pretrained(base)

    def everyone(words: PreTrainedTokenizerBase, folder: Path) -> list[Callable[[], Any]]:
        chats = tmp_path / "chats.jsonl"
        chats.write_text('{"prompt": "hello", "completion": "yes"}\n' * 3)
        words.save_pretrained(base)
        replay = ["--replay", str(data), "--replay_rows", "2", "--max_steps", "1", "--eval_examples", "1"]
        aligned = ["--model", base, "--data", str(chats), "--output_dir", str(tmp_path / "sft"), "--max_length", "64"]
        return [
            lambda: pretrain(["--data", str(data), "--tokenizer", str(folder), *sizes]),
            lambda: pretrain(["--data", f"file://{tmp_path}/published", "--tokenizer", str(folder), *sizes]),
            lambda: read_shards(tiny_model, str(data), words),
            lambda: read_run(data, words),
            lambda: sft.main([*aligned, *replay]),
        ]

    for read in everyone(tokenizer, wrong):
        with pytest.raises((ValueError, SystemExit), match="were made with another tokenizer than .*prepare the data"):
            read()
    for read in everyone(tiny_tokenizer, tmp_path / "tokenizer"):
        read()
    assert "do not say which tokenizer" not in capsys.readouterr().out

    record = read_json(data / "stage.json")
    record["inputs"]["tokenizer"]["path"] = str(wrong)
    write_json(data / "stage.json", record)
    with pytest.raises(ValueError, match="were made with another tokenizer"):
        publish_data(data, Target("user/shards", "dataset"), None, print, dry_run=True)

    for folder in (data, tmp_path / "published"):
        for path in folder.glob("*.json"):
            write_json(path, {key: value for key, value in read_json(path).items() if key != "tokenizer_sha256"})
    for read in everyone(tiny_tokenizer, tmp_path / "tokenizer"):
        read()
        assert "warning: the shards in" in capsys.readouterr().out


def test_data_of_two_tokenizers_is_not_mixed(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    folders = []
    for name, make in (("a", save), ("b", other), ("c", save)):
        (tmp_path / name).mkdir()
        folders.append(str(prepare(tmp_path / name, make(tiny_tokenizer, tmp_path / name / "tokenizer"))))
    with pytest.raises(ValueError, match="made by different tokenizers of the same size"):
        open_data(folders[:2], 16, 0, False)
    assert open_data([folders[0], folders[2]], 16, 0, False)[1].tokenizer == hash_tokenizer(tiny_tokenizer)
