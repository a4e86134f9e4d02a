"""Checkpoints that a run can be resumed from whatever happened: written beside, synced, renamed, hashed, pruned.

A checkpoint is a folder `step-00000500` with the weights as safetensors, the optimizer's tensors and counters
(loadable with `weights_only=True`), and a manifest of SHA-256 sums that is checked before anything is used.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.stage import atomic_folder, hash_file, write_json

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, torch.Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step-N` and remove all but the last `keep` checkpoints.

    Raises:
        OSError: It could not be written; older checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    with atomic_folder(path) as beside:
        tensors = {key: tensor.contiguous() for key, tensor in weights.items()}
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})  # as from_pretrained wants it
        torch.save(state, beside / "state.pt")
        write_json(beside / MANIFEST, {file.name: hash_file(file) for file in sorted(beside.iterdir())})
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


def load_latest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return weights and state of the newest checkpoint whose hashes are right, or None if there is none.

    A damaged checkpoint is named on the screen and the one before it is used.
    """
    for path in reversed(list_checkpoints(folder)):
        if problem := find_damage(path):
            print(f"checkpoint {path} is damaged ({problem}); using the one before")
            continue
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        return load_file(path / "model.safetensors"), state
    return None


def find_damage(path: Path) -> str:
    """Return what is wrong with a checkpoint, empty if every file has the hash that was written with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return f"{MANIFEST} is missing or cut off"
    for name, sha256 in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if hash_file(path / name) != sha256:
            return f"{name} was truncated or altered"
    return ""
