"""What all stages share: configuration from YAML and command line, one output folder, one `stage.json`.

A stage is known by a fingerprint of its configuration and of what its inputs contain. Run again with the same
fingerprint it does nothing or goes on where it was; with another one the old output is moved aside and it starts anew.
What changes no result, as how often a run is saved, is marked `SameRun` where the setting is defined.
"""

import fcntl
import functools
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_type_hints

from training.stage.config import SameRun
from training.stage.files import hash_input, hash_text, read_json, write_json

METRICS = "metrics.jsonl"  # of every stage that trains: a line a log point
TASK = "task/"  # begins the names of a benchmark's figures in it
MEMORY = "memory.json"  # how many rows a process may hold, since one of several ran out of memory
# What a model is called, and the stage that makes it, in the order of training.
MODELS = {"base": "pretrain", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}
_locks: dict[Path, int] = {}  # descriptors of the folders that this process works in; to close one frees its folder
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "trl", "peft", "datasets", "safetensors")


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Turn a user's mistake into one sentence on stderr and exit status 1; `python -X dev` shows the stack."""

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except (ValueError, OSError, ImportError) as error:
            if sys.flags.dev_mode:
                raise
            # By its spec a module knows its name also where it was started as `__main__`.
            spec = sys.modules[main.__module__].__spec__
            sys.exit(f"{(spec.name if spec else main.__module__).rsplit('.', 1)[-1]}: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on from the last checkpoint.")
        finally:
            for folder in list(_locks):
                os.close(_locks.pop(folder))

    return wrapper


@dataclass
class Stage:
    """One run of one stage in one folder; `open_stage` makes it."""

    name: str
    folder: Path
    record: dict[str, Any]
    done: bool
    started: float = field(default_factory=time.time)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the record with its metrics; from now on the stage is skipped until something changes."""
        seconds = self.record.get("seconds", 0.0) + time.time() - self.started
        self.record |= {"status": "done", "seconds": round(seconds, 2), "metrics": metrics}
        write_json(self.folder / "stage.json", self.record)


def open_stage(
    name: str,
    config: Any,
    inputs: Mapping[str, str | Sequence[str] | None],
    output_dir: str,
    raised: Mapping[str, Callable[[], str]] | None = None,
) -> Stage:
    """Open the stage's folder: skip, resume or start anew, and say which.

    Args:
        config: The stage's dataclass; `output_dir`, the inputs' paths and what is `SameRun` do not count for the
            fingerprint.
        inputs: For each field of the config that names an input, a file, a folder or a Hub id, or a list of them.
        output_dir: Folder of the stage. What a symbolic link points to is moved aside, and the link stays.
        raised: For a setting that may be raised in an old run, what says why this run cannot go on; an empty text if
            it can. It is asked before anything is written.
    """
    folder = Path(output_dir)
    settings = {k: v for k, v in asdict(config).items() if k != "output_dir" and k not in inputs and counts(config, k)}
    hashes = {key: hash_input(value) for key, value in inputs.items() if value}
    fingerprint = fingerprint_of(name, settings, hashes)
    if old := read_json(folder / "stage.json"):
        lock(folder)
        why = why_not_raised(name, old, settings, hashes, raised or {})
        if old["fingerprint"] == fingerprint:
            return _reopen(name, folder, old)
        changed = ", ".join(what_changed(old, settings, hashes)) or "the way to tell runs apart"
        aside = move_aside(folder)
        print(f"{name}: {changed} changed{why and f', and {why}'}; the old output is now {aside}", flush=True)
    given = {key: {"path": inputs[key], "sha256": sha} for key, sha in hashes.items()}
    record = {"stage": name, "status": "running", "fingerprint": fingerprint, "config": settings, "inputs": given}
    record |= environment()
    folder.resolve().mkdir(parents=True, exist_ok=True)
    lock(folder)
    write_json(folder / "stage.json", record)
    return Stage(name, folder, record, done=False)


def _reopen(name: str, folder: Path, record: dict[str, Any]) -> Stage:
    """Return a stage that was run before with the same settings and inputs, to its end or not."""
    done = record["status"] == "done"
    print(f"{name}: {'nothing has changed, skipped' if done else 'goes on where it was'} ({folder})", flush=True)
    if not done:
        record["seconds"] = record.get("seconds", 0.0) + seconds_of_work(folder)
        write_json(folder / "stage.json", record)
    return Stage(name, folder, record, done)


def fingerprint_of(name: str, settings: dict[str, Any], hashes: dict[str, str]) -> str:
    """Return what a run is known by: its stage, its settings and what its inputs contain."""
    return hash_text(json.dumps([name, settings, hashes], sort_keys=True, default=str))


def why_not_raised(
    name: str,
    old: dict[str, Any],
    settings: dict[str, Any],
    hashes: dict[str, str],
    raised: Mapping[str, Callable[[], str]],
) -> str:
    """Let an old run go on if nothing changed but a setting that was raised; return why it may not, empty if it may.

    Args:
        old: Its record, which then gets the new settings.
    """
    for key, ask in raised.items():
        before = old["config"].get(key, settings[key])
        if before < settings[key] and fingerprint_of(name, settings | {key: before}, hashes) == old["fingerprint"]:
            print(f"{name}: {key} was raised from {before} to {settings[key]}", flush=True)
            if why := ask():
                return why
            old |= {"fingerprint": fingerprint_of(name, settings, hashes), "config": settings, "status": "running"}
    return ""


def counts(config: Any, name: str) -> bool:
    """Whether another value of a setting would make it another run."""
    marks = getattr(get_type_hints(type(config), include_extras=True)[name], "__metadata__", ())
    same = [mark for mark in marks if isinstance(mark, SameRun)]
    return not same or any(getattr(config, other) for other in same[0].unless)


def what_changed(old: dict[str, Any], settings: dict[str, Any], hashes: dict[str, str]) -> list[str]:
    """Return the names of settings and inputs that differ from those of an old record."""
    now, before = json.loads(json.dumps(settings, default=str)), old["config"]
    names = [key for key, value in now.items() if key not in before or before[key] != value]
    inputs = {key: found["sha256"] for key, found in old["inputs"].items()}
    return names + [key for key in {**inputs, **hashes} if inputs.get(key) != hashes.get(key)]


def move_aside(path: Path) -> Path:
    """Rename a folder to NAME.previous, or NAME.previous-2 and so on, and return where it is; nothing is deleted.

    Of a symbolic link, what it points to is renamed, on its own disk, and the link stays.

    Raises:
        ValueError: It cannot be renamed, as the root of a mounted disk.
    """
    real = path.resolve()
    names = (f"{real.name}.previous{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    aside = next(free for name in names if not os.path.lexists(free := real.with_name(name)))
    try:
        real.rename(aside)
    except OSError as error:
        raise ValueError(
            f"{real} holds another run and cannot be moved aside ({error.strerror}); move it or choose another one."
        ) from None
    return aside


def lock(folder: Path) -> None:
    """Keep a second process from working in the folder until this one ends.

    Raises:
        ValueError: Another process works in it.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # the first process of a run locks it for all
    if folder in _locks:
        os.close(_locks.pop(folder))
    _locks[folder] = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(_locks[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process works in {folder}; wait for its end, or end it.") from None
    except OSError:
        pass  # a file system without locks


def seconds_of_work(folder: Path) -> float:
    """Return how long a process that was interrupted had worked in the folder, by the last thing that it wrote."""
    begun = (folder / "stage.json").stat().st_mtime
    return max(0.0, *(path.stat().st_mtime - begun for path in folder.rglob("*")))


def environment() -> dict[str, Any]:
    """Commit of the code, versions of the packages and the machine, for the record of a run."""
    import torch  # takes seconds, and the processes that prepare data import this file too

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine: dict[str, Any] = {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()}
    machine["accelerators"] = accelerators
    return {"commit": _git_commit(), "versions": versions, "machine": machine}


def _git_commit() -> str | None:
    root = Path(__file__).parent.parent.parent
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
        dirty = "-dirty" if run(["git", "status", "--porcelain"]).stdout.strip() else ""
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
