"""What processes send each other in a step, counted: the causes of lost time that no run on CPUs would show."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_distributed import environment, run_on
from test_pretrain import corpus, rows, trainer

__all__ = ["corpus"]  # a fixture that is used here too

WORKER = Path(__file__).parent / "collectives_worker.py"
SIZES: dict[str, Any] = {"batch_rows": 8, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
MUON = {"optimizer": "muon"}
SHARDED, COPIED = environment(shards=2), environment(copies=2)
RUNS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "fsdp": (SHARDED, {}),
    "fsdp-bf16": (SHARDED, {"precision": "bf16"}),
    "fsdp-pieces": (SHARDED, {"micro_batch_size": 1}),
    "fsdp-little-memory": (SHARDED, {"micro_batch_size": 1, "whole_gradient": 0.0}),
    "fsdp-muon": (SHARDED, MUON),
    "ddp": (COPIED, {}),
    "ddp-pieces": (COPIED, {"micro_batch_size": 1}),
    "ddp-muon": (COPIED, MUON),
}
Found = dict[str, list[dict[str, Any]]]


def measure(num_processes: int, corpus: Path, folder: Path, runs: dict[str, Any]) -> Found:
    """What each process counted in each run."""
    changed = {name: (layout, SIZES | {"micro_batch_size": 4} | changes) for name, (layout, changes) in runs.items()}
    run_on(num_processes, WORKER, [str(corpus), str(folder), json.dumps(changed)])
    counted = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]
    return {name: [process[name] for process in counted] for name in runs}


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return measure(2, corpus, tmp_path_factory.mktemp("found"), RUNS)


def sent(run: list[dict[str, Any]], operation: str, what: str = "sent") -> dict[str, int]:
    """Number, or bytes, of an operation on the first process, by type."""
    return {key.split("torch.")[1]: count for key, count in run[0][what].items() if key.startswith(operation)}


@pytest.mark.slow
def test_in_bf16_layers_are_gathered_in_bf16_and_gradients_summed_in_float32(found: Found) -> None:
    whole, half = (sent(found[name], "allgather", "bytes") for name in ("fsdp", "fsdp-bf16"))
    assert set(whole) == {"float32"} and set(half) == {"float32", "bfloat16"}
    outside = half["float32"]  # embedding and last norm, once
    assert half["bfloat16"] == (whole["float32"] - outside) // 2 > 3 * outside
    for name in ("fsdp", "fsdp-bf16"):
        assert sent(found[name], "reduce_scatter", "bytes") == sent(found["fsdp"], "reduce_scatter", "bytes")
        assert set(sent(found[name], "reduce_scatter")) == {"float32"}


@pytest.mark.slow
def test_gradients_are_sent_once_a_step_whatever_the_number_of_micro_batches(found: Found) -> None:
    """And of a model too large to keep its gradient whole, for each micro-batch."""
    once = sent(found["fsdp"], "reduce_scatter")["float32"]
    assert sent(found["fsdp-pieces"], "reduce_scatter")["float32"] == once == 1 + SIZES["num_hidden_layers"]
    assert sent(found["fsdp-little-memory"], "reduce_scatter")["float32"] == 4 * once
    for what in ("sent", "bytes"):
        assert sent(found["ddp-pieces"], "allreduce", what) == sent(found["ddp"], "allreduce", what)
    for name in ("fsdp-pieces", "fsdp-little-memory", "ddp", "ddp-pieces"):
        for key in ("loss", "norm"):
            assert found[name][0][key] == pytest.approx(found["fsdp"][0][key], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-muon", "ddp-muon"])
def test_muons_matrices_are_shared_out_and_sent_by_shape(found: Found, name: str) -> None:
    """7 matrices a layer have 3 shapes (4 heads and as many of keys): sent to and fro, where there are shards."""
    matrices = 7 * SIZES["num_hidden_layers"]
    assert [process["matrices"] for process in found[name]] == [matrices // 2] * 2
    plain = found[name.removesuffix("-muon")]
    more = sum(found[name][0]["sent"].values()) - sum(plain[0]["sent"].values())
    assert more == (6 if name == "fsdp-muon" else 3)


PATIENT = """
import time
from datetime import timedelta
from accelerate import PartialState
from torch.distributed.distributed_c10d import _set_pg_timeout
from training.engine.device import on_main

PartialState(cpu=True)
_set_pg_timeout(timedelta(seconds=5))
assert on_main(lambda: time.sleep(8) or "done") == "done"
"""


@pytest.mark.slow
def test_processes_wait_for_the_main_one_longer_than_for_anything_else(tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(PATIENT)
    run_on(2, tmp_path / "patient.py", [])


@pytest.mark.long
def test_four_processes_share_out_too_and_train_as_one(corpus: Path, tmp_path: Path) -> None:
    """Shards in two copies, which send gradients to each other once a step, and shards of split matrices."""
    copied, split = environment(copies=2, shards=2), environment(shards=2, splits=2)
    little = {"micro_batch_size": 1, "whole_gradient": 0.0}
    runs = {"copied": (copied, MUON), "little-memory": (copied, MUON | little), "split": (split, MUON)}
    found = measure(4, corpus, tmp_path, runs)
    one = trainer(corpus, tmp_path, **(SIZES | {"micro_batch_size": 4} | MUON))
    for _ in range(2):
        loss, _, norm = one.train_step(rows(corpus, packed=False))
    matrices = 7 * SIZES["num_hidden_layers"]
    for run in found.values():
        assert sum(process["matrices"] for process in run) == matrices
        assert max(process["matrices"] for process in run) <= matrices // 4 + 2
        for process in run:
            assert process["loss"] == pytest.approx(loss, rel=1e-5) and process["norm"] == pytest.approx(
                norm, rel=1e-4
            )
    assert sent(found["little-memory"], "allreduce") == sent(found["copied"], "allreduce")
