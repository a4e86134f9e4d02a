"""How far a pretraining run is: what its checkpoints remember, and what it did since the last line of the log."""

from dataclasses import dataclass


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimizers; the position in the data follows from `step`."""

    step: int = 0
    tokens: int = 0  # trained on so far
    time_s: float = 0.0  # in training steps, without evaluation and saving
    skipped_steps: int = 0  # whose loss or gradient was not finite
    micro_batch_rows: int = 0  # rows a process holds at once; 0 until it is known what fits


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
