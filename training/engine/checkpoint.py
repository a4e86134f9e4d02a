"""Checkpoints that a run can be resumed from whatever happened: written beside, synced, renamed, hashed, pruned.

A checkpoint is a folder `step-00000500`: a model that `from_pretrained` takes, the optimizer's tensors and counters
(loadable with `weights_only=True`), and a manifest of SHA-256 sums that is checked before anything is used. Where the
optimizer is sharded, each process writes its part into the folder `optimizer`, in safetensors.
"""

import json
import math
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_scratch.hub.files import hash_file
from training.stage.files import atomic_folder, write_json

# What a checkpoint has that a model's folder has not; the second where the optimizer is sharded.
MANIFEST, SHARDS, STATE = "manifest.json", "optimizer", "state.pt"


def save_checkpoint(
    folder: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    keep: int,
    val_loss: float | None = None,
    pinned: Collection[int] = (),
    write_files: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write `folder/step-N` and remove all but the last `keep` checkpoints and the one of the lowest held-out loss.

    Args:
        val_loss: Held-out loss at this very step; None where it was not measured.
        pinned: Steps whose checkpoints are kept besides.
        write_files: Writes what a model's folder has besides its weights, so that the checkpoint loads as a model, and
            what processes write together.

    Raises:
        OSError: It could not be written; older checkpoints are untouched.
    """
    path = path_of(folder, step)
    with atomic_folder(path) as beside:
        write_files(beside)
        tensors = {key: tensor.contiguous() for key, tensor in weights.items()}
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})  # as from_pretrained wants it
        torch.save(state, beside / STATE)
        written = sorted(file for file in beside.rglob("*") if file.is_file())
        files = {file.relative_to(beside).as_posix(): hash_file(file) for file in written}
        write_json(beside / MANIFEST, {"val_loss": val_loss, "files": files})
    kept = {best_checkpoint(folder), *(path_of(folder, step) for step in pinned)}
    for old in list_checkpoints(folder)[:-keep]:
        if old not in kept:
            shutil.rmtree(old)
    return path


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the lowest held-out loss, the older of equal ones; None if none was measured."""
    losses = {path: loss for path in list_checkpoints(folder) if (loss := _val_loss(path)) is not None}
    finite = {path: loss for path, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda path: finite[path]) if finite else None


def _val_loss(path: Path) -> float | None:
    try:
        return json.loads((path / MANIFEST).read_text())["val_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged checkpoint cannot be the best one


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


def load_latest(
    folder: Path, usable: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return weights and state of the newest checkpoint whose hashes are right, or None if there is none.

    A damaged checkpoint is named on the screen and the one before it is used. One whose state is not usable is passed
    over.
    """
    for path in reversed(list_checkpoints(folder)):
        if problem := find_damage(path):
            print(f"checkpoint {path} is damaged ({problem}); using the one before")
            continue
        weights, state = load_checkpoint(path)
        if usable(state):
            return weights, state
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return weights and state of a checkpoint."""
    state = torch.load(path / STATE, weights_only=True, map_location="cpu")
    return load_file(path / "model.safetensors"), state


def find_damage(path: Path) -> str:
    """Return what is wrong with a checkpoint, empty if every file has the hash that was written with it."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or cut off"
    for name, sha256 in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if hash_file(path / name) != sha256:
            return f"{name} was truncated or altered"
    return ""


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimizers; the position in the data follows from `step`."""

    step: int = 0
    tokens: int = 0  # trained on so far
    time_s: float = 0.0  # in training steps, without evaluation and saving
    skipped_steps: int = 0  # whose loss or gradient was not finite
    micro_batch_size: int = 0  # rows a process holds at once; 0 until it is known what fits
    val_tokens: int = 0  # most that an evaluation reads, the same in the whole run; 0 until it is settled

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Progress":
        """Return the progress that a checkpoint holds; earlier ones say `micro_batch_rows`."""
        new_names = {"micro_batch_rows": "micro_batch_size"}
        return cls(**{new_names.get(key, key): value for key, value in saved.items()})
