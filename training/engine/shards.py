"""Tensors of which each process holds a part (DTensor), and how to get from a part to the whole and back.

An ordinary tensor passes through each function as it is, so the callers need not know whether anything is sharded.
"""

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; every process that holds a part must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the whole of which each process gives its part, cut like another tensor."""
    return whole(_as_sharded(part, like)) if isinstance(like, DTensor) else part


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
