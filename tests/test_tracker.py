"""A tracker shows what metrics.jsonl holds, and one that is not installed is named."""

import importlib.util
from pathlib import Path

import pytest
from tiny_run import make_tokenizer_and_data

from training.pretrain import main as pretrain


def arguments(folder: Path, tracker: str) -> list[str]:
    sizes = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --context_length 64 --batch_rows 2"
    steps = "--max_steps 2 --log_steps 1 --eval_steps 2 --warmup_steps 0"
    inputs = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer")]
    return [*sizes.split(), *steps.split(), *inputs, "--output_dir", str(folder / "pretrain"), "--tracker", tracker]


def test_tensorboard_gets_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    make_tokenizer_and_data(tmp_path)
    pretrain(arguments(tmp_path, "tensorboard"))
    (events,) = (tmp_path / "pretrain").rglob("events.out.tfevents.*.0")
    assert all(name in events.read_bytes() for name in (b"train_loss", b"val_bpb", b"tokens_per_s"))
    capsys.readouterr()
    pretrain(arguments(tmp_path, "none"))
    assert "nothing has changed, skipped" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="tracker='wandb' is not installed; run `pip install wandb`"):
        pretrain(arguments(tmp_path, "wandb"))
