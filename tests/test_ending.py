"""Training to a state instead of a step count: a target, patience, and runs that are made longer afterwards."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import arguments, corpus, metrics, stop_at, timeless, weights_hash

from training.engine.checkpoint import best_checkpoint, find_damage, list_checkpoints, path_of, save_checkpoint
from training.engine.config import PretrainConfig
from training.engine.ending import Ending
from training.engine.loop import PretrainingRun
from training.engine.optimizer import learning_rate
from training.evaluation.markdown import write_report
from training.pretrain import main as pretrain
from training.stage.files import read_json

__all__ = ["corpus"]  # a fixture that is used here too

WSD: dict[str, Any] = {"schedule": "wsd", "decay_fraction": 0.25, "save_steps": 3, "eval_steps": 2, "log_steps": 1}


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_is_made_longer_is_the_longer_run(
    corpus: Path, tmp_path: Path, capsys: Any, precision: str
) -> None:
    """Bit for bit, also if it is stopped on the way and if little is kept."""
    changes = WSD | {"optimizer": "muon", "precision": precision, "keep_checkpoints": 1}
    pretrain(arguments(corpus, tmp_path / "whole", **changes, max_steps=20))
    run = tmp_path / "run"
    pretrain(arguments(corpus, run, **changes, max_steps=12))
    short, left = weights_hash(run), (run / "metrics.jsonl").read_bytes()
    assert 9 in saved_steps(run) and 12 in saved_steps(run)
    stop_at(10, arguments(corpus, run, **changes, max_steps=20))
    shown = capsys.readouterr().out
    assert "max_steps was raised from 12 to 20" in shown and "goes on from step 9" in shown
    assert 12 not in saved_steps(run)
    pretrain(arguments(corpus, run, **changes, max_steps=20))
    assert weights_hash(run) == weights_hash(tmp_path / "whole")
    assert timeless(run) == timeless(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "whole"}
    aside = run / "shorter.previous"
    assert weights_hash(aside) == short and (aside / "metrics.jsonl").read_bytes() == left
    assert not find_damage(aside / "step-00000012") and not list(run.glob("shorter.previous-2"))
    pretrain(arguments(corpus, run, **changes, max_steps=20))
    assert "nothing has changed, skipped" in capsys.readouterr().out


def test_what_cannot_be_made_longer_is_moved_aside_and_told_why(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    for number, changes in enumerate(({}, {"max_steps": 14}, WSD | {"max_steps": 12}, WSD | {"max_steps": 8})):
        pretrain(arguments(corpus, run, **changes))
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found == ["run", "run.previous", "run.previous-2", "run.previous-3"][: number + 1]
    shown = capsys.readouterr().out
    assert "max_steps was raised from 12 to 14" in shown
    assert "with schedule=cosine it sets the learning rate of every step" in shown
    assert "pretrain: max_steps changed; the old output is now" in shown  # made shorter
    assert read_json(tmp_path / "run.previous" / "stage.json")["metrics"]["step"] == 12


@pytest.mark.parametrize("lost", ["before the decay", "all"])
def test_without_a_checkpoint_before_the_decay_nothing_is_begun_anew(corpus: Path, tmp_path: Path, lost: str) -> None:
    """Nor changed: the command of the run as it was finds it done."""
    run = tmp_path / "run"
    pretrain(arguments(corpus, run, **WSD, max_steps=12))
    for path in list_checkpoints(run / "checkpoints"):
        if lost == "all":
            shutil.rmtree(path)
        elif path.name <= "step-00000009":
            (path / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="no checkpoint from before its decay"):
        pretrain(arguments(corpus, run, **WSD, max_steps=20))
    pretrain(arguments(corpus, run, **WSD, max_steps=12))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [run]


def test_the_model_of_a_shorter_run_is_kept_also_without_its_last_checkpoint(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(arguments(corpus, run, **WSD, max_steps=12))
    before = weights_hash(run)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    pretrain(arguments(corpus, run, **WSD, max_steps=20))
    assert weights_hash(run / "shorter.previous") == before != weights_hash(run)


def test_a_target_begins_the_decay(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """The run is that of which max_steps would have been right; stopped before or after the target, too."""
    pretrain(arguments(corpus, tmp_path / "right", **WSD, max_steps=8))
    target = metrics(tmp_path / "right")[5]["val_bpb"]
    changes = WSD | {"max_steps": 30, "until_val_bpb": target}
    pretrain(arguments(corpus, tmp_path / "until", **changes))
    assert (
        f"until_val_bpb={target} is reached; the decay begins, and the run ends at step 8" in capsys.readouterr().out
    )
    found = read_json(tmp_path / "until" / "stage.json")["metrics"]
    assert found["until_val_bpb"] == {"target": target, "reached_at": 6} and found["step"] == 8
    assert 6 in saved_steps(tmp_path / "until")
    for step in (4, 6):
        stop_at(step, arguments(corpus, tmp_path / f"stopped-{step}", **changes))
        pretrain(arguments(corpus, tmp_path / f"stopped-{step}", **changes))
    for name in ("until", "stopped-4", "stopped-6"):
        assert weights_hash(tmp_path / name) == weights_hash(tmp_path / "right")
        assert [line["lr"] for line in timeless(tmp_path / name)] == [
            line["lr"] for line in timeless(tmp_path / "right")
        ]


def test_a_target_that_is_missed_is_said_and_can_be_trained_for_later(
    corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    pretrain(arguments(corpus, tmp_path / "long", **WSD, max_steps=30))
    curve = {line["step"]: line["val_bpb"] for line in metrics(tmp_path / "long") if line["val_bpb"]}
    # The loss of so small a run goes up and down.
    reached_at = next(
        step for step in curve if step > 12 and curve[step] < min(curve[one] for one in curve if one < step)
    )
    target = curve[reached_at]
    changes, run = WSD | {"until_val_bpb": target}, tmp_path / "run"
    pretrain(arguments(corpus, run, **changes, max_steps=12))
    shown = capsys.readouterr().out
    assert f"step 9: until_val_bpb={target} is not reached, and max_steps=12 makes the decay begin" in shown
    assert read_json(run / "stage.json")["metrics"]["until_val_bpb"] == {"target": target, "reached_at": None}
    pretrain(arguments(corpus, run, **changes, max_steps=100))
    found = read_json(run / "stage.json")["metrics"]
    assert found["until_val_bpb"]["reached_at"] == reached_at and found["step"] == round(reached_at / 0.75)


# Better while the rate is low, worse when it is far too high.
WORSE: dict[str, Any] = {
    "learning_rate": 0.6, "warmup_steps": 60, "max_steps": 60, "eval_steps": 3, "log_steps": 3, "save_steps": 50,
    "keep_checkpoints": 1, "patience": 3,
}  # fmt: skip


def test_patience_ends_a_run_and_keeps_its_best_model(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    pretrain(arguments(corpus, run, **WORSE))
    losses = {line["step"]: line["val_loss"] for line in metrics(run)}
    best = min(losses, key=lambda step: losses[step])
    assert list(losses)[-1] == best + 9 < 60 and best > 3
    assert f"the run ends, and its model is that of step {best}" in capsys.readouterr().out
    found = read_json(run / "stage.json")["metrics"]
    assert found["best_step"] == best and found["val_loss"] == losses[best]
    model = load_file(run / "model" / "model.safetensors")
    checkpoint = load_file(run / "checkpoints" / f"step-{best:08d}" / "model.safetensors")
    assert all(torch.equal(model[name], weight) for name, weight in checkpoint.items())
    stop_at(best + 2, arguments(corpus, tmp_path / "stopped", **WORSE))
    pretrain(arguments(corpus, tmp_path / "stopped", **WORSE))
    assert weights_hash(tmp_path / "stopped") == weights_hash(run) and timeless(tmp_path / "stopped") == timeless(run)


def test_a_best_model_that_was_damaged_is_said(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    take_best = PretrainingRun.take_best

    def damaged(self: PretrainingRun) -> None:
        (path_of(tmp_path / "checkpoints", self.ending.best_step) / "manifest.json").unlink()
        take_best(self)

    monkeypatch.setattr(PretrainingRun, "take_best", damaged)
    pretrain(arguments(corpus, tmp_path, **WORSE))
    last = metrics(tmp_path)[-1]
    assert f"is damaged (manifest.json is missing or cut off); the model is that of step {last['step']}" in (
        capsys.readouterr().out
    )
    assert read_json(tmp_path / "stage.json")["metrics"]["val_loss"] == last["val_loss"]


def test_what_decides_about_the_end_counts_as_a_setting(corpus: Path, tmp_path: Path) -> None:
    """How often is evaluated is no setting of the run, unless an evaluation can end it."""
    for name, changes in (("plain", {}), ("patient", {"patience": 9}), ("until", WSD | {"until_val_bpb": 0.1})):
        for eval_steps in (2, 3):
            pretrain(arguments(corpus, tmp_path / name, **changes | {"max_steps": 6, "eval_steps": eval_steps}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "patient", "patient.previous", "plain", "until", "until.previous",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until_val_bpb": 1.0}, "it needs schedule=wsd, here cosine"),
        (
            {"until_val_bpb": 1.0, "schedule": "wsd", "decay_fraction": 1.0},
            "a decay_fraction from 0 to below 1, here 1.0",
        ),
        ({"patience": -1}, "patience=-1 must be 0"),
    ],
)
def test_settings_that_cannot_end_a_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(output_dir="x", data=["d"], tokenizer="t", **changes)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.25, 0.5, 0.7])
def test_up_to_the_step_that_a_longer_run_goes_on_from_the_rate_is_at_its_peak(fraction: float) -> None:
    """And from an evaluation that reached the target on it falls at once, to the end."""
    for step in range(1, 60):
        config = PretrainConfig(
            output_dir="x", data=["d"], tokenizer="t", schedule="wsd", decay_fraction=fraction, warmup_steps=0,
            max_steps=200, until_val_bpb=1.0,
        )  # fmt: skip
        ending = Ending()
        ending.note(config, step, 1.0, 0.9)
        last = ending.last_step(config)
        rates = [learning_rate(k, last, 1.0, 0, "wsd", fraction) for k in range(last)]
        assert ending.reached_at == step < last and ending.decay_from(config) <= step
        assert rates[:step] == [1.0] * step or last == step + 1
        assert rates[ending.decay_from(config) + 1 :] == sorted(rates[ending.decay_from(config) + 1 :], reverse=True)


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, math.nan), (2, 2.0), (3, 1.0), (4, math.nan), (5, math.inf)):
        save_checkpoint(tmp_path, step, {"w": torch.zeros(1)}, {}, keep=9, val_loss=loss)
    assert best_checkpoint(tmp_path) == path_of(tmp_path, 3)


def test_the_report_names_a_target_that_was_not_reached(tmp_path: Path) -> None:
    targets = {"base": {"target": 0.16, "reached_at": None}, "again": {"target": 0.2, "reached_at": 400}}
    results: dict[str, Any] = {"models": {"base": {"texts": {}}}, "targets": targets, "paired": []}
    write_report(results | {"curves": {}, "prompts": None, "samples": []}, tmp_path / "report.md")
    lacking = (tmp_path / "report.md").read_text().partition("## What is missing")[2]
    assert "- base: 0.16 bits per byte" in lacking and "- again" not in lacking
