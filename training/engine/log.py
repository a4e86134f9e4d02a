"""What a pretraining run says while it runs: the lines of its log, and trackers.

TensorBoard (`tensorboard --logdir runs/NAME/pretrain`) and Trackio (`trackio show`) are local and need no account.
"""

import importlib.util
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.engine.checkpoint import Progress
from training.engine.config import PretrainConfig

PROJECT = "hf_scratch"


@dataclass
class Interval:
    """Loss and speed since the last line of the log."""

    nats: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        """Count one step with its mean loss; a skipped one has no tokens, only its time counts."""
        self.nats += loss * tokens if tokens else 0.0
        self.tokens += tokens
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    def line(self, progress: Progress, lr: float, grad_norm: float) -> dict[str, Any]:
        """Return a line of metrics.jsonl; what was not measured is null."""
        return {
            "step": progress.step,
            "tokens": progress.tokens,
            "time_s": round(progress.time_s, 3),
            "train_loss": self.mean_loss if self.tokens else None,
            "val_loss": None,
            "val_bpb": None,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_s": self.tokens / self.seconds,
        }


def in_short(last: dict[str, Any]) -> str:
    """Return the newest figures, for the progress bar."""
    loss = last.get("train_loss", math.nan)
    utilisation = f" {last['mfu']:.1%} MFU" if "mfu" in last else ""
    # exp overflows where a run diverges.
    return f"loss {loss:.3f} ppl {math.exp(min(loss, 99)):.4g} {last['tokens_per_s']:,.0f} tokens/s{utilisation}"


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
