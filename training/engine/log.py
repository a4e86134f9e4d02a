"""What a pretraining run says while it runs: the lines of its log."""

import math
from dataclasses import dataclass
from typing import Any

from training.engine.checkpoint import Progress


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
