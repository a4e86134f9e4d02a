"""Tensors of which each process holds a part: their parts, work on them in shares, and optimizers saved and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; every process that holds a part must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a whole tensor that is cut like another."""
    if not isinstance(like, DTensor):
        return full
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return full[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]


def shard_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor cut like another, of which this process keeps its part."""
    if not isinstance(like, DTensor):
        return full
    return _as_sharded(part_of(full, like).to(like.device).contiguous(), like)


def _as_sharded(part: torch.Tensor, like: DTensor) -> DTensor:
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def in_shares(
    work: Callable[[torch.Tensor], torch.Tensor],
    parts: torch.Tensor,
    like: torch.Tensor,
    copies: DeviceMesh | None = None,
) -> torch.Tensor:
    """Do some work on each of many matrices, each on one process alone, and return this process's part of the results.

    All matrices are sent at once, each to the process that works on it, and their results back.

    Args:
        work: Takes and returns matrices (any number, rows, columns), each by itself.
        parts: What this process holds of each matrix (n, rows of it, columns of it).
        like: One of them, whole or cut.
        copies: Processes that all hold them whole.
    """
    if isinstance(like, DTensor):
        mesh, held = like.device_mesh, tuple(map(_behind_one, like.placements))
    elif copies is not None:
        mesh, held = copies, (Replicate(),)
    else:
        return work(parts)
    shares = (Shard(0),) * mesh.ndim
    sizes: dict[str, Any] = {"shape": torch.Size([len(parts), *like.shape])}
    sizes["stride"] = (like.shape.numel(), like.shape[1], 1)
    share = DTensor.from_local(parts, mesh, held, run_check=False, **sizes).redistribute(placements=shares)
    done = work(share.to_local()).contiguous()
    return DTensor.from_local(done, mesh, shares, run_check=False, **sizes).redistribute(placements=held).to_local()


def _behind_one(placement: Placement) -> Placement:
    """Return how a stack is cut whose tensors are cut like this."""
    if isinstance(placement, _StridedShard):
        return _StridedShard(placement.dim + 1, split_factor=placement.split_factor)
    return Shard(placement.dim + 1) if isinstance(placement, Shard) else placement


def take_shards(states: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Take the sharded tensors out of optimizers' states, whose entries become None, and return them by name."""
    taken: dict[str, torch.Tensor] = {}
    for number, state in enumerate(states):
        for index, tensors in state["state"].items():
            sharded = {key: value for key, value in tensors.items() if isinstance(value, DTensor)}
            taken |= {f"{number}.{index}.{key}": value for key, value in sharded.items()}
            state["state"][index] = tensors | dict.fromkeys(sharded)
    return taken


def save_shards(tensors: dict[str, torch.Tensor], folder: Path | None) -> None:
    """Write sharded tensors by name as safetensors, each process its part; all must call this, with the same names.

    Args:
        folder: Where to; the main process says it, once it has made the folder around it.

    Raises:
        OSError: A process could not write.
    """
    (folder,) = broadcast_object_list([folder])
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        state_dict_saver.save(tensors, storage_writer=writer)
    except CheckpointException as error:  # on all processes, whichever failed
        reason, _ = next(iter(error.failures.values()))
        raise OSError(f"the optimizer could not be written: {reason}") from None


def load_optimizers(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]], folder: Path) -> None:
    """Load states, whole or taken apart by `take_shards`, into optimizers whose parameters may be sharded.

    Args:
        folder: What `save_shards` wrote, by any number of processes; each reads its part alone.
    """
    missing: dict[str, Any] = {}
    for number, (optimizer, saved) in enumerate(zip(optimizers, states, strict=True)):
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for index, tensors in saved["state"].items():
            for key, value in tensors.items():
                if value is None:
                    tensors[key] = missing[f"{number}.{index}.{key}"] = torch.empty_like(params[index])
                elif value.shape == params[index].shape:
                    tensors[key] = shard_like(value, params[index])
    if missing:
        reader = HuggingFaceStorageReader(str(folder))
        state_dict_loader.load(missing, storage_reader=reader, no_dist=not dist.is_initialized())
    for optimizer, saved in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(saved)
