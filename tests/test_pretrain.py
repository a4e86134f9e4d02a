"""The pretraining loop: it learns, its batch can be cut in any way, and no interruption changes where it ends."""

import gc
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch.cli import main as hf_scratch
from training.engine.batches import PackedDocuments, Windows
from training.engine.checkpoint import Progress
from training.engine.config import PretrainConfig
from training.engine.device import resolve_precision
from training.engine.initial_weights import build_model
from training.engine.loop import PretrainingRun
from training.engine.parallel import make_accelerator
from training.engine.token_shards import load_shards
from training.prepare_data import main as prepare_data
from training.pretrain import main as pretrain
from training.train_tokenizer import main as train_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "context_length": 128,
    "batch_rows": 4,
    "max_steps": 12,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "log_steps": 3,
    "eval_steps": 6,
    "save_steps": 4,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    size = ["--num_stories", "200"]
    train_tokenizer(["--output_dir", str(folder / "tokenizer"), "--vocab_size", "400", *size])
    prepare_data(["--output_dir", str(folder / "data"), "--tokenizer", str(folder / "tokenizer"), *size])
    return folder


def arguments(corpus: Path, output_dir: Path, **changes: Any) -> list[str]:
    settings = SIZES | changes
    inputs = [
        "--data",
        str(corpus / "data"),
        "--tokenizer",
        str(corpus / "tokenizer"),
        "--output_dir",
        str(output_dir),
    ]
    return inputs + [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def trainer(corpus: Path, folder: Path, **changes: Any) -> PretrainingRun:
    config = PretrainConfig(
        data=str(corpus / "data"),
        tokenizer=str(corpus / "tokenizer"),
        output_dir=str(folder),
        **(SIZES | changes),
    )
    shards, held_out = (load_shards(corpus / "data", split) for split in ("train", "val"))
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    accelerator = make_accelerator(resolve_precision(config.precision))
    return PretrainingRun(config, accelerator, folder, build_model(config, shards.vocab_size, tokenizer), held_out)


def rows(corpus: Path, packed: bool) -> PackedDocuments | Windows:
    return (PackedDocuments if packed else Windows)(load_shards(corpus / "data", "train"), 128, 0)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The log without what differs from run to run."""
    return [{k: v for k, v in line.items() if k not in ("time_s", "tokens_per_s")} for line in metrics(folder)]


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_leaves_a_model_that_loads(corpus: Path, tmp_path: Path, optimizer: str) -> None:
    pretrain(arguments(corpus, tmp_path, optimizer=optimizer, max_steps=40, pack_documents=True, eval_steps=20))
    lines = metrics(tmp_path)
    assert all(line.keys() == lines[0].keys() for line in lines)  # a table; what was not measured is null
    for name in ("tokens", "time_s"):
        assert 0 < lines[0][name] < lines[-1][name]
    assert all(line["tokens_per_s"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert max(line["lr"] for line in lines) > lines[-1]["lr"] >= 0
    assert lines[0]["step"] == 3 and lines[-1]["step"] == 40
    evaluated = [line for line in lines if line["val_bpb"] is not None]
    assert [line["step"] for line in evaluated] == [20, 40]
    assert lines[0]["train_loss"] > lines[-1]["train_loss"] + 1 and evaluated[0]["val_bpb"] > evaluated[1]["val_bpb"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.use_cache and model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == [0, 3]
    record = json.loads((tmp_path / "stage.json").read_text())
    assert record["status"] == "done" and record["metrics"]["val_bpb"] == lines[-1]["val_bpb"]
    assert record["metrics"]["parameters"] == model.num_parameters()


@pytest.mark.parametrize(("packed", "precision"), [(True, "fp32"), (False, "fp32"), (True, "bf16")])
def test_accumulation_does_not_change_loss_or_gradient(
    corpus: Path, tmp_path: Path, packed: bool, precision: str
) -> None:
    """8 rows at once, 2 x 4, 8 x 1 and 3 + 3 + 2; packed rows have different numbers of counted tokens."""
    gradients, losses = [], []
    for micro in (0, 4, 1, 3):
        changes = {"micro_batch_size": micro, "precision": precision, "max_grad_norm": 1e9, "learning_rate": 0.0}
        run = trainer(corpus, tmp_path, batch_rows=8, **changes)
        captured: list[torch.Tensor] = []
        run.optimizers[0].register_step_pre_hook(
            lambda *_, run=run, captured=captured: captured.extend(p.grad.clone() for p in run.model.parameters())
        )
        loss, tokens, _ = run.train_step(rows(corpus, packed))
        gradients.append(captured)
        losses.append((loss, tokens))
    for loss, tokens in losses[1:]:
        assert tokens == losses[0][1] and loss == pytest.approx(
            losses[0][0], abs=1e-6 if precision == "fp32" else 1e-4
        )
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            if precision == "fp32":
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
            else:  # each product is rounded to 8 bits
                assert (one - two).norm() < 0.02 * one.norm()


def test_rows_may_be_shorter_than_the_models_context(corpus: Path, tmp_path: Path) -> None:
    pretrain(arguments(corpus, tmp_path / "short", context_length=128, row_length=32, max_steps=3))
    pretrain(arguments(corpus, tmp_path / "same", context_length=32, max_steps=3))
    assert timeless(tmp_path / "short") == timeless(tmp_path / "same")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "short" / "model").config.max_position_embeddings == 128


def test_a_step_without_finite_loss_never_reaches_the_weights(corpus: Path, tmp_path: Path) -> None:
    run = trainer(corpus, tmp_path)
    before = {name: param.detach().clone() for name, param in run.model.named_parameters()}
    hook = run.model.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    run.train_step(rows(corpus, True))
    run.train_step(rows(corpus, True))
    assert run.progress.skipped_steps == 2
    for name, param in run.model.named_parameters():
        assert torch.equal(param.detach(), before[name])
    with pytest.raises(ValueError, match="no finite loss.*lower learning_rate.*Any checkpoint in .* is good"):
        run.train_step(rows(corpus, True))
    hook.remove()
    run.train_step(rows(corpus, True))
    assert run.bad_steps == 0 and run.progress.skipped_steps == 3


def test_a_skipped_step_leaves_no_trace_in_the_log(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = PretrainingRun.backward

    def spoilt(self: PretrainingRun, batch: Any, total: int) -> torch.Tensor:
        loss = backward(self, batch, total)
        return loss * math.nan if self.progress.step == 2 else loss

    monkeypatch.setattr(PretrainingRun, "backward", spoilt)
    pretrain(arguments(corpus, tmp_path, max_steps=4, log_steps=1))
    lines = metrics(tmp_path)
    assert [line["train_loss"] is None for line in lines] == [False, False, True, False]
    assert lines[2]["tokens"] == lines[1]["tokens"] < lines[3]["tokens"]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "stage.json").read_text())["metrics"]["skipped_steps"] == 1


def test_a_run_that_ended_before_its_model_was_written_is_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(arguments(corpus, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("training.engine.loop.save_model", lambda *arguments: {}["full disk"])
        pretrain(arguments(corpus, tmp_path / "late"))
    assert not (tmp_path / "late" / "model").exists()
    pretrain(arguments(corpus, tmp_path / "late"))
    assert weights_hash(tmp_path / "late") == weights_hash(tmp_path / "whole")
    whole, late = (json.loads((tmp_path / name / "stage.json").read_text())["metrics"] for name in ("whole", "late"))
    assert whole.keys() == late.keys() and whole["val_bpb"] == late["val_bpb"] > 0


def stop_at(step: int, command: list[str]) -> None:
    """Run until it is told to stop, in the step after this one."""

    def tell(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        taken = int(next(iter(optimizer.state.values())).get("step", -1)) if optimizer.state else 0
        if isinstance(optimizer, torch.optim.AdamW) and taken == step:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = register_optimizer_step_pre_hook(tell)
    try:
        with pytest.raises(SystemExit, match=f"stopped after step {step + 1}"):
            pretrain(command)
    finally:
        hook.remove()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_bit_for_bit_and_its_log_too(corpus: Path, tmp_path: Path, precision: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    changes = {"optimizer": "muon", "precision": precision}
    pretrain(arguments(corpus, tmp_path / "whole", **changes))
    stop_at(4, arguments(corpus, tmp_path / "stopped", **changes))
    assert signal.getsignal(signal.SIGINT) is before
    pretrain(arguments(corpus, tmp_path / "stopped", **changes))
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_memory_runs_out_the_micro_batch_halves_and_nothing_else_changes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    """An injected error in the probe (8 rows) and in the third step (4 rows), against runs told to hold so many."""
    changes = {"batch_rows": 8, "attention_dropout": 0.1, "precision": precision}
    run = trainer(corpus, tmp_path / "out", **changes)
    limit = 4

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    run.unwrapped.model.register_forward_pre_hook(check, with_kwargs=True)
    run.find_micro_batch()
    assert run.progress.micro_batch_size == 4
    told = trainer(corpus, tmp_path / "told", micro_batch_size=4, **changes)
    told.find_micro_batch()
    for step in range(4):
        if step == 2:
            limit = told.progress.micro_batch_size = 2
        taken = []
        for one in (run, told):
            torch.manual_seed(step)
            one.progress.step = step
            taken.append(one.train_step(rows(corpus, True)))
        assert taken[0] == taken[1]
    assert run.progress.micro_batch_size == 2
    for name, param in run.unwrapped.named_parameters():
        assert torch.equal(param, told.unwrapped.get_parameter(name))
    assert "memory ran out with 4 rows at once; going on with 2" in capsys.readouterr().out
    limit = 0
    with pytest.raises(ValueError, match="memory runs out at step 3 with one row of 128 tokens"):
        run.train_step(rows(corpus, True))


@pytest.mark.slow
def test_a_process_that_may_hold_little_memory_trains_with_fewer_rows_at_once(corpus: Path, tmp_path: Path) -> None:
    """A real shortage: the address space is limited to little more than the process has before training."""
    script = (
        "import resource, sys\n"
        "from training import pretrain\n"
        "from training.engine.loop import PretrainingRun\n"
        "find = PretrainingRun.find_micro_batch\n"
        "def limited(self):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)\n"
        "    find(self)\n"
        "PretrainingRun.find_micro_batch = limited\n"
        "pretrain.main(sys.argv[1:])\n"
    )
    command = arguments(corpus, tmp_path, batch_rows=256, max_steps=2, hidden_size=64)
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, env=one_thread())
    assert done.returncode == 0, done.stderr
    assert "memory ran out with 256 rows at once" in done.stdout
    assert 1 <= json.loads((tmp_path / "stage.json").read_text())["metrics"]["micro_batch_size"] < 256


def test_progress_of_an_earlier_checkpoint_is_read() -> None:
    assert Progress.read({"step": 3, "micro_batch_rows": 4}) == Progress(step=3, micro_batch_size=4)


@pytest.mark.long
def test_memory_stays_flat(corpus: Path, tmp_path: Path) -> None:
    run = trainer(corpus, tmp_path, batch_rows=1, max_steps=2000, log_steps=50, eval_steps=500, save_steps=500)
    sizes: list[int] = []

    def measure(*_: Any) -> None:
        if run.progress.step % 500 == 499:
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)

    run.optimizers[0].register_step_pre_hook(measure)
    run.loop(rows(corpus, True))
    assert len(sizes) == 4 and sizes[-1] - sizes[0] < 20 * 2**20, sizes


@pytest.mark.parametrize(
    ("kills", "changes"),
    [
        pytest.param(20, {}, marks=pytest.mark.slow),
        pytest.param(20, {"micro_batch_size": 1, "schedule": "wsd", "optimizer": "muon"}, marks=pytest.mark.long),
        pytest.param(4, {"precision": "bf16", "max_steps": 60, "optimizer": "muon"}, marks=pytest.mark.slow),
    ],
)
def test_killed_at_many_moments_it_ends_where_an_undisturbed_run_ends(
    corpus: Path, tmp_path: Path, kills: int, changes: dict[str, Any]
) -> None:
    """Real processes, SIGKILL or SIGTERM at a random time: in a step, an evaluation or while a checkpoint is saved.

    They are forked from one process that has imported everything, which is what makes twenty affordable.
    """
    changes = {"max_steps": 300, "save_steps": 10, "eval_steps": 10, "log_steps": 10, "pack_documents": True} | changes
    script = Path(__file__).with_name("killed_runs.py")
    whole, killed = (json.dumps(arguments(corpus, tmp_path / name, **changes)) for name in ("whole", "killed"))
    result = subprocess.run(
        [sys.executable, str(script), whole, killed, str(kills)], capture_output=True, text=True, env=one_thread()
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) == kills, result.stdout
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "whole")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "does not divide hidden_size"),
        ({"context_length": 10_000_000}, "a row of 10000000 tokens is longer than half"),
        ({"learning_rte": 1}, "did you mean 'learning_rate'"),
        ({"optimizer": "sgd"}, "invalid choice"),
        ({"eval_steps": 0}, "eval_steps=0 must be 1 or more"),
        ({"row_length": 129}, "row_length=129 must be between 1 and context_length=128"),
    ],
)
def test_mistakes_are_one_sentence(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        pretrain(arguments(corpus, tmp_path, **changes))
    assert message in str(exit_.value) + capsys.readouterr().err


def test_without_shards_the_command_to_make_them_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `python -m training.prepare_data` first"):
        pretrain(
            ["--data", str(tmp_path), "--tokenizer", str(corpus / "tokenizer"), "--output_dir", str(tmp_path / "run")]
        )


def test_a_checkpoint_can_be_talked_to_while_the_run_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(5, arguments(corpus, tmp_path / "run"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    with pytest.raises(SystemExit, match=f"did you mean {checkpoint}"):
        hf_scratch(["generate", str(tmp_path / "run"), "Once"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        hf_scratch(["generate", str(checkpoint), "Once", "--max-new-tokens", "5", "--seed", "0"])
    assert ended.value.code is None
    assert capsys.readouterr().out.startswith("Once")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.generation_config.eos_token_id and not (checkpoint / "files").exists()
    pretrain(arguments(corpus, tmp_path / "run"))
    pretrain(arguments(corpus, tmp_path / "whole"))
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")
