"""When the learning rate of a run begins to fall and when the run ends: by its steps, at a target, out of patience.

A run of schedule wsd can be ended from any step at its peak, so it may train to a state instead of a step count, and
may be made longer later: up to the decay, runs of any length are the same run.
"""

import functools
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.engine.checkpoint import find_damage, list_checkpoints, load_latest, path_of
from training.engine.config import PretrainConfig
from training.engine.optimizer import decay_steps
from training.stage.record import METRICS, move_aside


@dataclass
class Ending:
    """How far a run is from its end: what a checkpoint must remember of it. All else follows from the settings."""

    reached_at: int = 0  # step whose evaluation found the target reached; 0: none yet
    best_loss: float = math.inf  # lowest held-out loss, nats a token
    best_step: int = 0
    best_before_decay: int = 0  # step
    since_best: int = 0  # evaluations

    def last_step(self, config: PretrainConfig) -> int:
        """Return the step at which the run ends, unless patience ends it before."""
        if not self.reached_at:
            return config.max_steps
        return min(config.max_steps, max(self.reached_at + 1, round(self.reached_at / (1 - config.decay_fraction))))

    def decay_from(self, config: PretrainConfig) -> int:
        """Return the last step before a wsd run's learning rate falls; 0 where it falls from the start."""
        return peak_steps(config, self.last_step(config))

    def over(self, config: PretrainConfig, step: int) -> bool:
        """Whether the run has ended after this step."""
        impatient = config.patience > 0 and self.since_best >= config.patience
        return impatient or step >= self.last_step(config)

    def asks_for_checkpoint(self, config: PretrainConfig, step: int) -> bool:
        """Whether the state after this step will be needed: to make the run longer, or as its best model."""
        return step == self.decay_from(config) or (config.patience > 0 and step == self.best_step)

    def pinned(self, config: PretrainConfig) -> set[int]:
        """Return the steps whose checkpoints are kept for a longer run."""
        return {self.decay_from(config)} | ({self.best_before_decay} if config.patience else set())

    def note(self, config: PretrainConfig, step: int, val_loss: float, val_bpb: float) -> list[str]:
        """Count an evaluation and return what it changes, in sentences."""
        said = []
        if val_loss < self.best_loss:
            self.best_loss, self.best_step, self.since_best = val_loss, step, 0
            if step <= self.decay_from(config):
                self.best_before_decay = step
        else:
            self.since_best += 1
            if config.patience and self.since_best >= config.patience:
                said.append(
                    f"step {step}: the held-out loss has not fallen for {self.since_best} evaluations; the run ends, "
                    f"and its model is that of step {self.best_step}"
                )
        target = config.until_val_bpb
        if target is not None and not self.reached_at and step <= self.decay_from(config) and val_bpb <= target:
            self.reached_at = step
            said.append(
                f"step {step}: {val_bpb:.4f} bits per byte, until_val_bpb={target} is reached; the decay begins, and "
                f"the run ends at step {self.last_step(config)}"
            )
        return said

    def at_bound(self, config: PretrainConfig, step: int) -> str:
        """Return what to say where max_steps makes the decay begin before the target is reached; elsewhere nothing."""
        if config.until_val_bpb is None or self.reached_at or step != self.decay_from(config):
            return ""
        return (
            f"step {step}: until_val_bpb={config.until_val_bpb} is not reached, and max_steps={config.max_steps} "
            "makes the decay begin; a higher max_steps lets the run go on from here, also later"
        )

    def figures(self, config: PretrainConfig) -> dict[str, object]:
        """Return what the run's record says of it."""
        found: dict[str, object] = {}
        if config.until_val_bpb is not None:
            found["until_val_bpb"] = {"target": config.until_val_bpb, "reached_at": self.reached_at or None}
        return found | ({"best_step": self.best_step} if config.patience else {})


def peak_steps(config: PretrainConfig, last_step: int) -> int:
    """Return how many steps of a run that ends at `last_step` do not depend on its length."""
    if config.schedule != "wsd":
        return 0
    return max(0, last_step - decay_steps(last_step, config.decay_fraction))


def ending_of(state: dict[str, Any]) -> Ending:
    """Return what a checkpoint remembers."""
    return Ending(**{key: value for key, value in state["ending"].items() if key != "last_step"})


def goes_on(config: PretrainConfig, state: dict[str, Any]) -> bool:
    """Whether the run as it is set now can go on from a checkpoint.

    It can if it ends where the run that wrote it was to end, or if the decay had not begun.
    """
    last_step = state["ending"]["last_step"]  # of the run that wrote it
    same = ending_of(state).last_step(config) == last_step
    return same or state["progress"]["step"] <= peak_steps(config, last_step)


def why_another(config: PretrainConfig) -> str:
    """Return why a higher max_steps makes another run, empty if it does not.

    Raises:
        ValueError: It does not, but nothing is left from which the run could go on: it would begin anew.
    """
    if config.schedule != "wsd":
        every = f"with schedule={config.schedule} it sets the learning rate of every step"
        return f"{every} (runs of wsd can be made longer)"
    folder = Path(config.output_dir)
    trained = (folder / "model").exists() or list_checkpoints(folder / "checkpoints")
    if trained and load_latest(folder / "checkpoints", functools.partial(goes_on, config)) is None:
        raise ValueError(
            f"{folder} has no checkpoint from before its decay, from which a longer run could go on; choose another "
            "output_dir."
        )
    return ""


def leave_decay(folder: Path, step: int) -> None:
    """Move aside what a shorter run left behind `step`, from which a longer one goes on: model and checkpoints."""
    later = [path for path in list_checkpoints(folder / "checkpoints") if path > path_of(path.parent, step)]
    left = [*folder.glob("model"), *(path for path in later if not find_damage(path))]
    beside = folder / "shorter"  # also where an earlier attempt was interrupted
    if not left and not beside.exists():
        return
    beside.mkdir(exist_ok=True)
    if (folder / METRICS).exists() and not (beside / METRICS).exists():
        shutil.copy(folder / METRICS, beside / METRICS)
    for path in left:
        path.rename(beside / path.name)
    print(f"model, log and checkpoints of the shorter run are now in {move_aside(beside)}", flush=True)
