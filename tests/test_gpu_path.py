"""What costs time on a GPU alone, held on a CPU by its cause: chunks, copies, recompilations and waits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrain import corpus, rows, trainer
from torch._dynamo.testing import CompileCounterWithBackend

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.bits_per_byte import default_batch_tokens
from training.engine import loss as loss_module
from training.engine.batches import PackedDocuments, ReadAhead, Windows, fill_rows
from training.engine.loss import PretrainingLoss, chunk_rows
from training.engine.token_shards import Shards

__all__ = ["corpus"]  # a fixture that is used here too


@pytest.mark.parametrize("vocab_size", [32_768, 50_304])
def test_a_gpu_computes_the_loss_in_few_large_chunks(vocab_size: int) -> None:
    """Of 64 rows of 1,024 tokens 8 or 16, all alike; in a CPU's chunks it would be some hundred."""
    positions = 64 * 1024
    assert 4096 <= chunk_rows("cuda", vocab_size) <= 8192 and positions % chunk_rows("cuda", vocab_size) == 0
    assert positions / chunk_rows("cpu", vocab_size) > 500
    assert chunk_rows("cuda", 2**30) == 1 and chunk_rows("cuda", 100) == 8192


def test_chunks_of_any_size_give_the_same_loss_and_gradient(tiny_config: ScratchConfig) -> None:
    torch.manual_seed(0)
    model = ScratchForCausalLM(tiny_config)
    ids = torch.randint(0, tiny_config.vocab_size, (4, 32))
    found = []
    for size, items in ((None, ids.numel()), (7, ids.numel()), (64, torch.tensor(ids.numel()))):
        model.zero_grad()
        loss = PretrainingLoss(model, rows=size)(labels=ids, num_items=items, input_ids=ids)
        loss.backward()
        found.append((loss.detach(), model.model.embed_tokens.weight.grad.clone()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_the_number_of_counted_tokens_is_not_compiled_in() -> None:
    """Packed rows have another number of them each step, and each would be compiled anew until torch gives up."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss_module._loss_and_grad, backend=counter, dynamic=False)
    for items in (5, 6, 7):
        compiled(torch.randn(8, 16), torch.arange(8), torch.tensor(items))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", [Windows, PackedDocuments])
def test_batches_are_contiguous_so_that_pinning_copies_once(kind: type[Windows] | type[PackedDocuments]) -> None:
    shards = Shards(np.arange(2000) % 50, np.arange(0, 2000, 19), 2000, 50)
    (batch,) = ReadAhead()(kind(shards, 32, 0), [np.arange(3)], [np.arange(3, 6)])
    assert all(tensor.is_contiguous() for tensor in (batch | fill_rows(batch, 32)).values())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_the_probe_for_memory_and_shorter_rows_leave_nothing_to_compile_in_the_run(
    corpus: Path, tmp_path: Path, packed: bool
) -> None:
    """The probe's batch is of the kind of the run's: its compilation is the run's, at a fixed shape."""
    run = trainer(corpus, tmp_path, pack_documents=packed)
    run.compiled = True
    counter = CompileCounterWithBackend("aot_eager")
    for layer in run.unwrapped.model.layers:
        layer.compile(backend=counter, dynamic=False)
    run.find_micro_batch()
    before = counter.frame_count
    assert before >= 1
    for step in range(3):
        run.progress.step = step
        run.train_step(rows(corpus, packed))
    assert counter.frame_count == before


class Waits:
    """How often the value of a tensor is asked for, at which a GPU has to finish all that it was given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "numpy"):
            method = getattr(torch.Tensor, name)

            def asked(tensor: torch.Tensor, *given: Any, method: Any = method) -> Any:
                self.count += tensor.dtype.is_floating_point or tensor.ndim == 0 and tensor.dtype == torch.bool
                return method(tensor, *given)

            patch.setattr(torch.Tensor, name, asked)


def test_a_step_waits_for_the_device_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient norm come in one look, however many micro-batches a step has."""
    run = trainer(corpus, tmp_path, micro_batch_size=1)
    windows = rows(corpus, packed=False)
    run.train_step(windows)
    waits = Waits(monkeypatch)
    run.train_step(windows)
    assert waits.count == 1


def test_positions_that_nobody_gave_are_not_looked_at(
    tiny_config: ScratchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ScratchForCausalLM(tiny_config)
    waits = Waits(monkeypatch)
    model(input_ids=torch.zeros(2, 8, dtype=torch.long), use_cache=False)
    assert waits.count == 0
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    model(input_ids=torch.zeros(1, 8, dtype=torch.long), position_ids=positions, use_cache=False)
    assert waits.count == 1


def test_an_evaluation_reads_several_windows_at_once_on_a_gpu() -> None:
    assert default_batch_tokens(50_304, "cuda") >= 5 * 1024 > default_batch_tokens(50_304, "cpu")


ROOT = Path(__file__).parent.parent


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_goes_its_whole_way_on_a_cpu_and_says_that_there_is_none(tmp_path: Path) -> None:
    none = benchmark()
    assert none.returncode == 1 and none.stderr.strip().splitlines()[-1].startswith("gpu: there is no GPU here")
    done = benchmark("--device", "cpu", "--quick", "--output", f"{tmp_path}/gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert done.returncode == 0 and not [part for part in found.values() if "failed" in part or "left out" in part]
    assert found["resume"]["loss_is_off_by"] == 0 and 0 < found["Muon"]["optimizer_share"] < 1
