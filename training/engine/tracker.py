"""Showing a run's metrics in TensorBoard, Trackio or Weights & Biases, through accelerate.

TensorBoard (`tensorboard --logdir runs/NAME/pretrain`) and Trackio (`trackio show`) are local and need no account.
"""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.engine.config import PretrainConfig

PROJECT = "hf_scratch"


def tracker_options(tracker: str, folder: str) -> dict[str, Any]:
    """Return what the accelerator needs to know of the tracker; nothing for `none`.

    Raises:
        ValueError: It is not installed, which accelerate would pass over in silence.
    """
    if tracker == "none":
        return {}
    if importlib.util.find_spec(tracker) is None:
        raise ValueError(f"tracker={tracker!r} is not installed; run `pip install {tracker}`, or take tracker=none.")
    return {"log_with": tracker, "project_dir": folder}


def start_tracker(accelerator: Accelerator, config: PretrainConfig, fingerprint: str) -> None:
    """Begin or go on with the run in the tracker, with its settings.

    It has the name of its folder, and some digits of the stage's fingerprint: with other settings it is another run.
    """
    settings = {key: value for key, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
    run = {"name": "-".join([*Path(config.output_dir).parts[-2:], fingerprint[:8]]), "resume": "allow"}
    accelerator.init_trackers(
        PROJECT, config=settings, init_kwargs={"trackio": run, "wandb": run | {"id": run["name"]}}
    )


def finish_tracker(accelerator: Accelerator) -> None:
    """Write what the tracker still holds. Unlike `Accelerator.end_training`, the process group stays."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            tracker.finish()
