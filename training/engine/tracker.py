"""Trackers: where the metrics of a stage that trains are shown, besides its metrics.jsonl.

TensorBoard (`tensorboard --logdir runs/NAME`) and Trackio (`trackio show`) are local and need no account.
"""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.stage.files import read_json

PROJECT = "hf_scratch"


def require_tracker(tracker: str) -> None:
    """Raise ValueError if the tracker is not installed, which accelerate would pass over in silence."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"tracker={tracker!r} is not installed; run `pip install {tracker}`, or take tracker=none.")


def start_tracker(accelerator: Accelerator, config: Any, step: int) -> None:
    """Begin the run in the tracker of the settings, or go on with it after a step; nothing for `none`.

    It has the name of its folder, and some digits of the stage's fingerprint: with other settings it is another run.
    What was shown of the steps that are trained again is dropped where the tracker can do that.
    """
    if config.tracker == "none":
        return
    folder = Path(config.output_dir)
    fingerprint = read_json(folder / "stage.json").get("fingerprint", "")
    name = "-".join([*folder.parts[-2:], fingerprint[:8]])
    run = {"name": name, "resume": "allow"}
    settings = {key: value for key, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
    accelerator.log_with = [config.tracker]
    accelerator.project_configuration.set_directories(config.output_dir)
    accelerator.init_trackers(
        PROJECT,
        config=None if step else settings,
        init_kwargs={"tensorboard": {"purge_step": step + 1}, "trackio": run, "wandb": run | {"id": name}},
    )


def finish_tracker(accelerator: Accelerator) -> None:
    """Write what the tracker still holds. Unlike `Accelerator.end_training`, the process group stays."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            tracker.finish()
