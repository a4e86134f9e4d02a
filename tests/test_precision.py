"""The precision of training: what `auto` takes, that a run keeps the one that it began with, and what is recorded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_pretrain import arguments, corpus, metrics, one_thread, stop_at, weights_hash
from tiny_align import CHATS, run_stage, write_jsonl

from training import eval_model, sft
from training.engine import device as hardware
from training.engine.device import resolve_precision
from training.pretrain import main as pretrain
from training.stage.files import read_json

__all__ = ["corpus"]  # a fixture that is used here too


def processor(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    """Take this machine for one that multiplies bfloat16, or for one that does not."""
    monkeypatch.setattr(hardware, "_has_native_bf16", lambda: native)


def test_a_limit_on_the_processors_instructions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this processor has; oneDNN reads its limit when a process starts."""
    code = "from training.engine.device import resolve_precision; print(resolve_precision('auto'))"
    limited = one_thread() | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True)
    assert found.stdout == "fp32\n"
    if hardware.on_cpu():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
        assert resolve_precision("auto") == "fp32"
    assert resolve_precision("bf16") == "bf16" and resolve_precision("fp32") == "fp32"


@pytest.mark.parametrize("began", ["bf16", "fp32"])
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], began: str
) -> None:
    changes = {"precision": "auto", "max_steps": 6, "optimizer": "muon"}
    processor(monkeypatch, native=began == "bf16")
    pretrain(arguments(corpus, tmp_path / "whole", **changes))
    stop_at(2, arguments(corpus, tmp_path / "moved", **changes))
    processor(monkeypatch, native=began != "bf16")
    capsys.readouterr()
    pretrain(arguments(corpus, tmp_path / "moved", **changes))
    shown = capsys.readouterr().out
    other = "fp32" if began == "bf16" else "bf16"
    assert f"goes on in {began}, in which it began; precision auto is {other} here" in shown
    assert ("bf16 is emulated on this machine" in shown) == (began == "bf16")
    assert f"precision {began}" in shown
    record = read_json(tmp_path / "moved" / "stage.json")
    assert record["precision"] == record["metrics"]["precision"] == began and record["config"]["precision"] == "auto"
    assert weights_hash(tmp_path / "moved") == weights_hash(tmp_path / "whole")


def test_the_two_precisions_are_two_and_learn_alike(corpus: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        pretrain(arguments(corpus, tmp_path / precision, precision=precision, max_steps=6, log_steps=1))
    pairs = list(zip(metrics(tmp_path / "fp32"), metrics(tmp_path / "bf16"), strict=True))
    assert all(one["train_loss"] == pytest.approx(two["train_loss"], rel=0.01) for one, two in pairs)
    assert all(one["train_loss"] != two["train_loss"] for one, two in pairs)
    assert weights_hash(tmp_path / "fp32") != weights_hash(tmp_path / "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_multiplies_float32_in_tf32_where_bfloat16_is_good_enough(
    corpus: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """What is set is read here; a machine that has TF32 is made believe, and this one's setting is put back."""
    monkeypatch.setattr(hardware, "_has_tf32", lambda: gpu)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.")
    chats = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    try:
        for precision in ("bf16", "fp32"):
            pretrain(arguments(corpus, tmp_path / f"pretrain-{precision}", precision=precision, max_steps=1))
            expected = "high" if gpu and precision == "bf16" else "highest"
            assert torch.get_float32_matmul_precision() == expected
            run_stage(sft.main, base, chats, tmp_path / f"sft-{precision}", max_steps=1, precision=precision)
            assert torch.get_float32_matmul_precision() == expected
        model = f"base={tmp_path}/pretrain-fp32/model"
        eval_model.main(
            ["--models", model, "--text", str(text), "--num_prompts", "0", "--output_dir", f"{tmp_path}/eval"]
        )
        assert torch.get_float32_matmul_precision() == ("high" if gpu else "highest")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert read_json(tmp_path / "eval" / "results.json")["products"] == ("tf32" if gpu else "fp32")
    said = "rounds what it multiplies to TF32" if gpu else "and so is every evaluation here"
    assert said in (tmp_path / "eval" / "report.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tuning_records_its_precision_too(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    processor(monkeypatch, native=False)
    data = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    run_stage(sft.main, base, data, tmp_path / "run", max_steps=1, precision=precision)
    record = read_json(tmp_path / "run" / "stage.json")
    assert record["precision"] == record["metrics"]["precision"] == precision
    assert capsys.readouterr().out.count("bf16 is emulated on this machine, and slow") == (precision == "bf16")
