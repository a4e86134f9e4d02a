"""A trace of a few steps by torch.profiler, for chrome://tracing or https://ui.perfetto.dev."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

FIRST = 3  # steps that are passed over: they compile, allocate and measure


class Profiler:
    """Records some steps of a run after the first ones, and writes them down as soon as it has them."""

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps, self.path, self.done = steps, folder / "trace.json", 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.recorder = profile(activities=activities) if steps else None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Give the time of a step, which is recorded if it is one of those asked for."""
        if self.recorder is not None and self.done == FIRST:
            self.recorder.start()
        yield
        self.done += 1
        if self.recorder is not None and self.done == FIRST + self.steps:
            self.recorder.stop()
            self.recorder.export_chrome_trace(str(self.path))
            tqdm.write(f"{self.steps} steps are recorded in {self.path}")
            self.recorder = None
