"""What all stages share: configuration from YAML and command line, one output folder, one `stage.json`.

A stage is known by a fingerprint of its configuration and of what its inputs contain. Run again with the same
fingerprint it does nothing or goes on where it was; with another one the old output is moved aside and it starts anew.
What changes no result, as how often a run is saved, is marked `SameRun` where the setting is defined.
"""

import difflib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hf_scratch.hub.files import hash_file

Config = TypeVar("Config")

METRICS = "metrics.jsonl"  # of every stage that trains: a line a log point
MEMORY = "memory.json"  # how many rows a process may hold, since one of several ran out of memory
_held: dict[Path, int] = {}  # descriptors of the folders that this process works in; closed, they are free again
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "trl", "peft", "datasets", "safetensors")


@dataclass(frozen=True)
class SameRun:
    """Marks a setting, as `Annotated[int, SameRun()]`: whatever its value, the run is the same and goes on.

    `unless`: settings that, if set, make it count after all.
    """

    unless: tuple[str, ...] = ()


def parse_config(config_class: type[Config], argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read `--config FILE.yaml` and `--name value` options into the dataclass; the command line wins.

    Raises:
        ValueError: A key that the dataclass does not have, a value of the wrong type, or no such file.
    """
    from trl import TrlParser  # takes seconds, and the processes that prepare data import this file too

    argv = list(sys.argv[1:] if argv is None else argv)
    known = [f.name for f in fields(config_class)]  # type: ignore[arg-type]
    if "--config" in argv[:-1]:
        _check_yaml(Path(argv[argv.index("--config") + 1]), get_type_hints(config_class))
    parser = TrlParser([config_class], description=description, allow_abbrev=False)
    for option in argv:
        name = option.removeprefix("--").split("=")[0]
        if option.startswith("--") and name not in {*known, "config", "help"} and not name.startswith("no_"):
            raise ValueError(f"option --{name} does not exist{suggest(name, known)}")
    (config,) = parser.parse_args_and_config(argv)
    return config


def _check_yaml(path: Path, kinds: dict[str, Any]) -> None:
    """Refuse what the parser takes over as it stands: values of a YAML file are to it defaults, not input."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read ({error.strerror}); check the path.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} must hold `key: value` lines.")
    for key, value in content.items():
        if key not in kinds:
            raise ValueError(f"{path}: {key!r} is not a setting of this stage{suggest(str(key), list(kinds))}")
        if not is_a(kinds[key], value):
            if get_origin(kinds[key]) is Literal:
                raise ValueError(
                    f"{path}: {key}: {value!r} does not exist{suggest(str(value), [*get_args(kinds[key])])}"
                )
            wanted = kinds[key].__name__ if isinstance(kinds[key], type) else str(kinds[key])
            raise ValueError(f"{path}: {key}: {value!r} is no {wanted}.")


def is_a(kind: Any, value: Any) -> bool:
    """Return whether a value from YAML is of a field's type; 6e-4, which YAML reads as text, is a number."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(is_a(part, value) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(is_a(parts[0], item) for item in value)
    if kind is float and not isinstance(value, bool):
        try:
            return isinstance(float(value), float)
        except (TypeError, ValueError):
            return False
    if kind is int and isinstance(value, bool):
        return False
    kind = origin or kind
    return isinstance(value, kind)


def suggest(name: str, known: list[str]) -> str:
    """Return the end of a sentence on a name that is not known: the nearest one that is, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}."


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
            for folder in list(_held):
                os.close(_held.pop(folder))

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
        raised: For a setting whose raise alone may let an old run go on, what returns an empty text, else why it
            does not. It is asked before anything is written.
    """
    folder = Path(output_dir)
    settings = {k: v for k, v in asdict(config).items() if k != "output_dir" and k not in inputs and counts(config, k)}
    hashes = {key: hash_input(value) for key, value in inputs.items() if value}

    def fingerprint_of(settings: dict[str, Any]) -> str:
        return hash_text(json.dumps([name, settings, hashes], sort_keys=True, default=str))

    fingerprint = fingerprint_of(settings)
    old = read_json(folder / "stage.json")
    if old:
        hold(folder)
    why = ""
    for key, ask in (raised or {}).items() if old else ():
        before = old["config"].get(key, settings[key])
        if before < settings[key] and fingerprint_of(settings | {key: before}) == old["fingerprint"]:
            print(f"{name}: {key} was raised from {before} to {settings[key]}", flush=True)
            if not (why := ask()):
                old |= {"fingerprint": fingerprint, "config": settings, "status": "running"}
    if old and old["fingerprint"] == fingerprint:
        state = "nothing has changed, skipped" if old["status"] == "done" else "goes on where it was"
        print(f"{name}: {state} ({folder})", flush=True)
        if old["status"] != "done":
            old["seconds"] = old.get("seconds", 0.0) + seconds_of_work(folder)
            write_json(folder / "stage.json", old)
        return Stage(name, folder, old, old["status"] == "done")
    if old:
        changed = ", ".join(what_changed(old, settings, hashes)) or "the way to tell runs apart"
        aside = move_aside(folder)
        print(f"{name}: {changed} changed{why and f', and {why}'}; the old output is now {aside}", flush=True)
    record = {
        "stage": name,
        "status": "running",
        "fingerprint": fingerprint,
        "config": settings,
        "inputs": {key: {"path": inputs[key], "sha256": sha} for key, sha in hashes.items()},
        **environment(),
    }
    folder.resolve().mkdir(parents=True, exist_ok=True)
    hold(folder)
    write_json(folder / "stage.json", record)
    return Stage(name, folder, record, done=False)


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


def hold(folder: Path) -> None:
    """Keep a second process from working in the folder until this one ends.

    Raises:
        ValueError: Another process works in it.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # the first process of a run holds it for all
    if folder in _held:
        os.close(_held.pop(folder))
    _held[folder] = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(_held[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    root = Path(__file__).parent.parent
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
        dirty = "-dirty" if run(["git", "status", "--porcelain"]).stdout.strip() else ""
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def hash_text(text: str) -> str:
    """Return the hex SHA-256 of a string."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_input(value: str | Sequence[str]) -> str:
    """Hash what a path contains: a file's bytes, or a folder's files by name. A Hub id hashes as its own text."""
    if not isinstance(value, str):
        return hash_text(json.dumps([hash_input(item) for item in value]))
    path = Path(value)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return hash_text(value)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "stage.json")
    return hash_text(json.dumps([(str(p.relative_to(path)), hash_file(p)) for p in files]))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file or it was cut off while being written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old one or the new one, whatever happens meanwhile."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps that will be trained again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(line + "\n" for line in kept))
    beside.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to write into, and rename it to `path` when all of it is on the disk.

    Where `path` is a symbolic link, what it points to is written, beside that, and the link stays.

    Raises:
        OSError: Something could not be written, a full disk for example; what stood at `path` before is untouched.
    """
    path = path.resolve()
    beside = path.with_name(path.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in [*beside.rglob("*"), beside]:
            _fsync(file)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        # Each library has its own exception for a write that failed: OSError, SafetensorError, RuntimeError.
        raise OSError(f"{path} could not be written ({error}); free some space or choose another folder.") from error
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    beside.rename(path)
    _fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
