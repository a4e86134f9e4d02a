"""Compiled pretraining on a CPU: the same model, resumed bit for bit; and no compiler is no fault."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import arguments, corpus, metrics, one_thread, stop_at, weights_hash

from training.engine.batches import PackedDocuments, fill_rows
from training.engine.device import settle_compile
from training.engine.token_shards import load_shards
from training.pretrain import main as pretrain

__all__ = ["corpus"]  # a fixture that is used here too

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
CPU = torch.device("cpu")


def test_short_runs_are_not_compiled_unless_asked() -> None:
    assert settle_compile(None, 1e13, CPU)[0] is False
    assert settle_compile(False, 1e18, CPU)[0] is False


@pytest.mark.slow
def test_without_a_compiler_a_long_run_goes_on_without_and_an_asked_for_one_says_what_to_do(tmp_path: Path) -> None:
    code = "import sys, torch; from training.engine.device import settle_compile as settle; " + (
        "print(settle(eval(sys.argv[1]), 1e18, torch.device('cpu')))"
    )
    nowhere = one_thread() | {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ways = ("None", "True")
    found = [
        subprocess.run([sys.executable, "-c", code, way], env=nowhere, capture_output=True, text=True) for way in ways
    ]
    assert found[0].stdout.startswith("(False, ") and "g++ would make it faster" in found[0].stdout, found[0].stderr
    assert found[1].stderr.strip().splitlines()[-1].startswith("ValueError: compile=true, but torch.compile does not")


def test_rows_filled_up_carry_no_loss_and_are_documents_of_their_own(corpus: Path) -> None:
    packed = PackedDocuments(load_shards(corpus / "data", "train"), 128, 0)
    batch = packed.batch(torch.arange(4).numpy())
    filled = fill_rows(batch, 160)
    used = batch["labels"].shape[1]
    assert all(tensor.shape == (4, 160) for tensor in filled.values())
    assert all(torch.equal(filled[key][:, :used], batch[key]) for key in batch)
    assert (filled["labels"][:, used:] == -100).all() and (filled["position_ids"][:, used] == 0).all()
    assert fill_rows(batch, used) is batch


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        pytest.param("bf16", {"pack_documents": True, "micro_batch_size": 3}, marks=pytest.mark.slow),
        pytest.param("fp32", {}, marks=pytest.mark.long),
    ],
)
def test_a_compiled_run_trains_the_same_model_and_goes_on_bit_for_bit(
    corpus: Path, tmp_path: Path, precision: str, changes: dict[str, Any]
) -> None:
    changes = changes | {"precision": precision, "max_steps": 6, "log_steps": 1, "eval_steps": 3, "save_steps": 2}
    pretrain(arguments(corpus, tmp_path / "plain", compile="false", **changes))
    pretrain(arguments(corpus, tmp_path / "whole", compile="true", **changes))
    stop_at(3, arguments(corpus, tmp_path / "stopped", compile="true", **changes))
    torch.compiler.reset()  # as in a new process, which has compiled nothing yet
    pretrain(arguments(corpus, tmp_path / "stopped", compile="true", **changes))
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")
    tolerance = 1e-4 if precision == "fp32" else 0.01
    pairs = list(zip(metrics(tmp_path / "plain"), metrics(tmp_path / "whole"), strict=True))
    assert all(one["train_loss"] == pytest.approx(two["train_loss"], rel=tolerance) for one, two in pairs)
    assert all((one["val_bpb"] is None) == (two["val_bpb"] is None) for one, two in pairs)
    assert weights_hash(tmp_path / "plain") != weights_hash(tmp_path / "whole"), "it was compiled"
