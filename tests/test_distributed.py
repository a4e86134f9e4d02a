"""Pretraining on 2 and 4 real processes: DDP, FSDP2 and tensor parallelism train as one process does.

The sharding runs on CPUs and gloo; it is the same code that runs on GPUs, see training/engine/parallel.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import free_port
from safetensors.torch import load_file
from test_pretrain import arguments, corpus, metrics, one_thread, weights_hash
from transformers import AutoModelForCausalLM

from training.engine.parallel import USE_FSDP, USE_SIZES
from training.pretrain import main as pretrain
from training.run import Step, run_step
from training.stage.files import read_json

__all__ = ["corpus"]  # a fixture that is used here too

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "training" / "launch"
WORKER = ROOT / "tests" / "distributed_worker.py"
# 3 rows for each of 2 processes in pieces of 2: accumulation whose last piece is smaller.
CHANGES: dict[str, Any] = {
    "num_attention_heads": 4,
    "batch_rows": 8,
    "micro_batch_size": 3,
    "pack_documents": True,
    "max_steps": 6,
    "log_steps": 1,
    "eval_steps": 3,
    "save_steps": 3,
}
MUON = CHANGES | {"optimizer": "muon"}
BF16 = {"precision": "bf16"}


def environment(copies: int = 1, shards: int = 1, splits: int = 1) -> dict[str, str]:
    """What `accelerate launch` sets for a launch file with these sizes; DDP where nothing is sharded or split."""
    return {
        USE_FSDP: str(shards * splits > 1).lower(),
        USE_SIZES: str(shards * splits > 1).lower(),
        "FSDP_VERSION": "2",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(copies),
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": str(shards),
        "PARALLELISM_CONFIG_TP_SIZE": str(splits),
    }


def pretrain_on(num_processes: int, runs: list[tuple[dict[str, str], list[str]]]) -> None:
    """Run pretraining on this number of processes, once for each environment and arguments."""
    words = json.dumps([{"environment": variables, "arguments": options} for variables, options in runs])
    run_on(num_processes, WORKER, [words])


def run_on(num_processes: int, script: Path, words: list[str]) -> None:
    """Run a script on this number of processes, which find each other."""
    command = [sys.executable, str(ROOT / "tests" / "forked.py"), str(num_processes), str(script), *words]
    done = subprocess.run(command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def assert_same_run(folder: Path, other: Path) -> None:
    """Losses are equal to 1e-5, gradient norms to 1e-4; sums over processes round in another order.

    In bf16 products are rounded to 8 bits, and Adam makes a step of the size of the learning rate out of any rounding.
    """
    bf16 = read_json(folder / "stage.json")["precision"] == "bf16"
    for line, expected in zip(metrics(folder), metrics(other), strict=True):
        for key in ("step", "tokens", "train_loss", "val_loss", "val_bpb", "grad_norm"):
            assert (line[key] is None) == (expected[key] is None)
            if line[key] is not None:
                tolerance = (1e-4 if key == "grad_norm" else 1e-5) * (1000 if bf16 else 1)
                assert line[key] == pytest.approx(expected[key], rel=tolerance), (folder.name, line["step"], key)
    if bf16:
        return
    weights, expected_weights = (load_file(path / "model" / "model.safetensors") for path in (folder, other))
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-3, atol=2e-4, msg=f"{folder.name}: {name}")


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two runs, AdamW and Muon, on one process and on two in every way; folders by name."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain(arguments(corpus, folder / "adamw-one", **CHANGES))
    pretrain(arguments(corpus, folder / "muon-one", **MUON))
    pretrain(arguments(corpus, folder / "bf16-one", **MUON, **BF16))
    pretrain_on(
        2,
        [
            (environment(copies=2), arguments(corpus, folder / "adamw-ddp", **CHANGES)),
            (environment(shards=2), arguments(corpus, folder / "adamw-fsdp", **CHANGES)),
            (environment(splits=2), arguments(corpus, folder / "adamw-tp", **CHANGES)),
            (environment(shards=2), arguments(corpus, folder / "muon-fsdp", **MUON)),
            (environment(splits=2), arguments(corpus, folder / "muon-tp", **MUON)),
            (environment(copies=2), arguments(corpus, folder / "bf16-ddp", **MUON, **BF16)),
            (environment(shards=2), arguments(corpus, folder / "bf16-fsdp", **MUON, **BF16)),
        ],
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["adamw-ddp", "adamw-fsdp", "adamw-tp", "muon-fsdp", "muon-tp", "bf16-ddp", "bf16-fsdp"]
)
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    assert_same_run(runs / name, runs / (name.split("-")[0] + "-one"))
    model = AutoModelForCausalLM.from_pretrained(runs / name / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def continue_from(run: Path, folder: Path) -> None:
    """Make a folder that looks as a run that was killed after its first checkpoint, at step 3."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(record | {"status": "running"}))


@pytest.mark.long
def test_a_checkpoint_of_two_processes_goes_on_on_one_and_on_four(corpus: Path, runs: Path, tmp_path: Path) -> None:
    """And one of a single process on four; with FSDP2 and TP together, and with copies that are sharded."""
    ways = {
        "muon-fsdp": environment(shards=4),
        "adamw-tp": environment(shards=2, splits=2),
        "adamw-fsdp": environment(copies=2, shards=2),
        "adamw-one": environment(copies=4),
    }
    for name in (*ways, "muon-one"):
        continue_from(runs / name, tmp_path / name)
    continue_from(runs / "muon-fsdp", tmp_path / "muon-fsdp-to-one")
    changes = {name: MUON if name.startswith("muon") else CHANGES for name in ways}
    pretrain_on(4, [(way, arguments(corpus, tmp_path / name, **changes[name])) for name, way in ways.items()])
    pretrain(arguments(corpus, tmp_path / "muon-fsdp-to-one", **MUON))
    for folder in tmp_path.iterdir():
        assert_same_run(folder, runs / (folder.name.split("-")[0] + "-one"))


@pytest.mark.slow
def test_each_process_writes_its_part_of_a_sharded_optimizer(runs: Path) -> None:
    """The main process never holds all of it; what else a checkpoint has is a model's folder."""
    checkpoint = runs / "muon-fsdp" / "checkpoints" / "step-00000006"
    parts = sorted((checkpoint / "optimizer").iterdir())
    assert len(parts) == 2 and parts[0].stat().st_size == pytest.approx(parts[1].stat().st_size, rel=0.1)
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert (checkpoint / "state.pt").stat().st_size < weights / 4 < parts[0].stat().st_size
    assert set(read_json(checkpoint / "manifest.json")["files"]) >= {f"optimizer/{part.name}" for part in parts}
    AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not (runs / "adamw-ddp" / "checkpoints" / "step-00000006" / "optimizer").exists()


KILLED = """
import os, runpy, signal, sys
from torch.distributed.checkpoint import HuggingFaceStorageWriter

write, times = HuggingFaceStorageWriter.write_data, []

def killed(self, plan, planner):
    times.append(1)
    written = write(self, plan, planner)
    if os.environ["RANK"] == "1" and len(times) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return written

HuggingFaceStorageWriter.write_data = killed
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.long
def test_killed_while_shards_are_written_the_run_ends_bit_for_bit_as_an_undisturbed_one(
    corpus: Path, runs: Path, tmp_path: Path
) -> None:
    """One of two processes, at the second checkpoint: that one does not count, and the first one does."""
    (tmp_path / "killed.py").write_text(KILLED)
    options = arguments(corpus, tmp_path / "run", **MUON)
    words = json.dumps([{"environment": environment(shards=2), "arguments": options}])
    with pytest.raises(AssertionError, match=r"ended with \[\d+, -9\]"):
        run_on(2, tmp_path / "killed.py", [str(WORKER), words])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*[0-9]")] == ["step-00000003"]
    pretrain_on(2, [(environment(shards=2), options)])
    assert weights_hash(tmp_path / "run") == weights_hash(runs / "muon-fsdp")


LITTLE_MEMORY = """
import os, torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import pretrain

steps = []

def check(module, args):
    if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled() and len(steps) == 4 and len(args[0]) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

if os.environ["RANK"] == "1":
    register_optimizer_step_pre_hook(lambda *_: steps.append(1))
    register_module_forward_pre_hook(check)
pretrain.main()
"""


@pytest.mark.long
def test_where_memory_runs_out_on_one_process_all_start_again_with_fewer_rows(
    corpus: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By `training.run`: from the checkpoint of step 3, with 1 row of the 3 that one held; the steps are the same."""
    (tmp_path / "limited.py").write_text(LITTLE_MEMORY)
    (tmp_path / "pretrain.yaml").write_text("{}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = arguments(corpus, tmp_path / "run" / "pretrain", **CHANGES)
    run_step(Step("pretrain", "limited", options), tmp_path, tmp_path / "run", "[1/1]", LAUNCH / "cpu-2.yaml")
    shown = "".join(capfd.readouterr())
    assert "memory ran out on process 1 at step 4 with 3 rows at once" in shown
    assert "once more, with fewer rows at once" in shown and "goes on from step 3" in shown
    assert read_json(tmp_path / "run" / "pretrain" / "stage.json")["metrics"]["micro_batch_size"] == 1
    assert_same_run(tmp_path / "run" / "pretrain", runs / "adamw-one")


@pytest.mark.slow
def test_rows_that_cannot_be_shared_out_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="batch_rows=7 cannot be shared out evenly over 2 parts"):
        pretrain_on(2, [(environment(copies=2), arguments(corpus, tmp_path, **CHANGES | {"batch_rows": 7}))])


SIGNALLED = """
import os, signal
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import pretrain

steps = []

def tell(*_):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == 5:
        os.kill(os.getpid(), signal.{name})

register_optimizer_step_pre_hook(tell)
pretrain.main()
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_signal_to_one_process_stops_all_and_the_launched_run_ends_bit_for_bit_as_an_undisturbed_one(
    corpus: Path, runs: Path, tmp_path: Path, name: str
) -> None:
    """Told to stop, both save and leave after step 5; killed, nothing is saved after step 3."""
    (tmp_path / "signalled.py").write_text(SIGNALLED.format(name=name))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "cpu-2.yaml")]
    launch += ["--main_process_port", str(free_port())]
    options = arguments(corpus, tmp_path / "run", **CHANGES)
    stopped = subprocess.run(
        [*launch, str(tmp_path / "signalled.py"), *options], env=one_thread(), capture_output=True, text=True
    )
    assert stopped.returncode != 0
    assert stopped.stdout.count("2 x cpu: 2 data-parallel") == 1
    assert stopped.stderr.count("stopped after step 5;") == (2 if name == "SIGTERM" else 0), stopped.stderr
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert newest == ("step-00000005" if name == "SIGTERM" else "step-00000003")
    subprocess.run([*launch, "-m", "training.pretrain", *options], env=one_thread(), check=True)
    assert weights_hash(tmp_path / "run") == weights_hash(runs / "adamw-ddp")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
