"""Ctrl-C, and the SIGTERM of Slurm, spot instances and launchers, as a wish that is granted after the step."""

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """In the block the two signals do nothing but set `came`; a second one ends a process that no launcher started."""

    def __init__(self, launched: bool) -> None:
        self.launched, self.came = launched, False

    def __enter__(self) -> "StopSignal":
        self.before: dict[int, Any] = {
            number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # A launcher passes on a signal that its processes got as well: the second one is no second wish.
        if self.came and not self.launched:
            raise KeyboardInterrupt
        self.came = True
