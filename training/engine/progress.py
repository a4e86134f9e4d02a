"""How far a pretraining run is: what its checkpoints remember, and what it did since the last line of the log."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimizers; the position in the data follows from `step`."""

    step: int = 0
    tokens: int = 0  # trained on so far
    time_s: float = 0.0  # in training steps, without evaluation and saving
    skipped_steps: int = 0  # whose loss or gradient was not finite
    micro_batch_rows: int = 0  # rows a process holds at once; 0 until it is known what fits
    val_tokens: int = 0  # most that an evaluation reads, the same in the whole run; 0 until it is settled


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
    # No number is as large as the perplexity of a run that diverges.
    return f"loss {loss:.3f} ppl {math.exp(min(loss, 99)):.4g} {last['tokens_per_s']:,.0f} tokens/s{utilisation}"
