"""A tracker shows what metrics.jsonl holds, in every stage that trains, and one that is not installed is named."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_align import CHATS, PAIRS, THUMBS, write_jsonl
from tiny_run import make_tokenizer_and_data

from training import dpo, grpo, sft
from training.alignment import trainer as align_trainer
from training.engine.loop import PretrainingRun
from training.pretrain import main as pretrain


def arguments(folder: Path, tracker: str, *more: str) -> list[str]:
    sizes = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --context_length 64 --batch_rows 2"
    steps = "--max_steps 2 --log_steps 1 --eval_steps 2 --warmup_steps 0 --precision fp32"
    inputs = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer")]
    words = [*sizes.split(), *steps.split(), *inputs, "--output_dir", str(folder / "pretrain"), "--tracker", tracker]
    return [*words, *more]


def shown(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard reads in the folder of a stage: step and value of each figure by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(output / "hf_scratch"))
    found.Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def assert_shows_the_log(output: Path) -> None:
    """Each figure that metrics.jsonl holds, at its step, and once."""
    names = {"loss": "train_loss", "eval_loss": "val_loss"}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    held: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if value is not None:
                held.setdefault(names.get(name, name), []).append((line["step"], value))
    found = shown(output)
    assert found.keys() == held.keys()
    for name, values in held.items():
        assert [step for step, _ in found[name]] == [step for step, _ in values], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in values], rel=1e-5), name


def test_tensorboard_gets_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    make_tokenizer_and_data(tmp_path)
    pretrain(arguments(tmp_path, "tensorboard"))
    (events,) = (tmp_path / "pretrain").rglob("events.out.tfevents.*.0")
    assert all(name in events.read_bytes() for name in (b"train_loss", b"val_bpb", b"tokens_per_s"))
    assert_shows_the_log(tmp_path / "pretrain")
    capsys.readouterr()
    pretrain(arguments(tmp_path, "none"))
    assert "nothing has changed, skipped" in capsys.readouterr().out


def test_pretraining_that_goes_on_goes_on_in_its_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    make_tokenizer_and_data(tmp_path)
    words = arguments(tmp_path, "tensorboard", "--max_steps", "5", "--save_steps", "2")
    log = PretrainingRun.log

    def stopped(self: PretrainingRun, *args: Any) -> None:
        log(self, *args)
        if self.progress.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        patch.setattr(PretrainingRun, "log", stopped)
        pretrain(words)
    assert [step for step, _ in shown(tmp_path / "pretrain")["train_loss"]] == [1, 2, 3]
    pretrain(words)
    assert [step for step, _ in shown(tmp_path / "pretrain")["train_loss"]] == [1, 2, 3, 4, 5]
    assert_shows_the_log(tmp_path / "pretrain")


FIGURES = {"train_loss", "val_loss", "rewards/margins", "kl"}
ALIGNED: list[Any] = [
    pytest.param(sft.main, CHATS, {"train_loss", "val_loss", "mean_token_accuracy"}, id="sft"),
    pytest.param(dpo.main, PAIRS, FIGURES, id="dpo", marks=pytest.mark.slow),
    pytest.param(dpo.main, THUMBS, FIGURES, id="kto", marks=pytest.mark.slow),
    pytest.param(
        grpo.main, None, {"train_loss", "reward", "rewards/instruction/mean"}, id="grpo", marks=pytest.mark.slow
    ),
]


def align(base: str, output: Path, tracker: str, data: str | None) -> list[str]:
    """The command of six steps, a checkpoint after every second one."""
    words = f"--max_steps 6 --save_steps 2 --warmup_ratio 0 --log_steps 1 --precision fp32 --tracker {tracker}".split()
    words += ["--model", base, "--output_dir", str(output)]
    if data is None:
        return [*words, *"--prompts_per_step 1 --num_generations 2 --max_new_tokens 4".split()]
    return [*words, "--data", data, *"--batch_size 4 --max_length 96 --eval_examples 2 --eval_steps 3".split()]


@pytest.mark.parametrize(
    ("stage", "rows", "names"),
    ALIGNED,
)
def test_a_stage_that_goes_on_goes_on_in_its_tracker(
    stage: Callable[..., None],
    rows: Any,
    names: set[str],
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended after step 3 it goes on from step 2, and the tracker holds every step once."""
    pytest.importorskip("tensorboard")
    words = align(base, tmp_path / "run", "tensorboard", rows and write_jsonl(tmp_path / "rows.jsonl", rows))
    step_end = align_trainer.MetricsLog.on_log

    def stopped(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        patch.setattr(align_trainer.MetricsLog, "on_log", stopped)
        stage(words)
    assert [step for step, _ in shown(tmp_path / "run")["train_loss"]] == [1, 2, 3]
    stage(words)
    assert [step for step, _ in shown(tmp_path / "run")["train_loss"]] == [1, 2, 3, 4, 5, 6]
    assert_shows_the_log(tmp_path / "run")
    assert names | {"lr", "grad_norm"} <= shown(tmp_path / "run").keys()


def test_a_tracker_that_is_not_installed_is_named(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find_spec(name, *rest)
    )
    sentence = "tracker='wandb' is not installed; run `pip install wandb`"
    with pytest.raises(SystemExit, match=sentence):
        pretrain(arguments(tmp_path, "wandb"))
    chats = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    for name, stage, data in (("sft", sft.main, chats), ("dpo", dpo.main, chats), ("grpo", grpo.main, None)):
        with pytest.raises(SystemExit, match=f"{name}: {sentence}"):
            stage(align(base, tmp_path / name, "wandb", data))
