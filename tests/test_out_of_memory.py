"""Running out of memory is told from other errors whoever says it, and a step is taken again from where it began."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_align import CHATS, run_stage, write_jsonl

from training import sft
from training.alignment import stage as align
from training.engine.micro_batch import is_out_of_memory, random_state, set_random_state


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.44 GB)"),
        RuntimeError("Invalid buffer size: 12.00 GiB"),
        RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 64"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried 8"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("mkl: memory allocation failed"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("unable to mmap 1024 bytes from file </dev/shm/x>: Cannot allocate memory (12)"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
    ],
    ids=str,
)
def test_a_shortage_of_memory_is_one_whoever_says_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
        RuntimeError("view size is not compatible with input tensor's size and stride"),
        RuntimeError("Trying to backward through the graph a second time; saved tensors were freed to save memory"),
        FileNotFoundError(2, "No such file or directory"),
        ValueError("memory ran out with a single row at once: out of memory"),
    ],
    ids=str,
)
def test_another_error_is_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("message", ["could not create a primitive", "DefaultCPUAllocator: not enough memory", None])
def test_tuning_takes_the_step_again_in_smaller_pieces_as_if_nothing_had_been(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str | None
) -> None:
    load, limit = align.load_weights, 8

    def loaded(path: str, **kwargs: Any) -> Any:
        model = load(path, **kwargs)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3  # random numbers, of which the failed attempt used some

        def refuse(module: Any, args: Any, output: Any) -> None:
            if len(output.last_hidden_state) > limit and torch.is_grad_enabled():
                raise MemoryError if message is None else RuntimeError(message)

        model.model.register_forward_hook(refuse)
        return model

    monkeypatch.setattr(align, "load_weights", loaded)
    data, settings = write_jsonl(tmp_path / "rows.jsonl", CHATS), {"max_steps": 2, "log_steps": 1}
    told = run_stage(sft.main, base, data, tmp_path / "told", micro_batch_size=4, **settings)
    limit = 4
    found = run_stage(sft.main, base, data, tmp_path / "found", **settings)
    assert [line["loss"] for line in found] == [line["loss"] for line in told]
    one, other = (load_file(tmp_path / run / "model/model.safetensors") for run in ("told", "found"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_random_state_comes_back_from_the_disk(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = torch.rand(3)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_the_random_state_of_an_accelerator_comes_back_too(tmp_path: Path) -> None:
    device = torch.accelerator.current_accelerator()
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = torch.rand(3, device=device)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    assert torch.equal(torch.rand(3, device=device), drawn)
    set_random_state({"cpu": torch.get_rng_state()})  # of a machine without one
