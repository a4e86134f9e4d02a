"""Files and folders that are written whole or not at all, and hashes of what they hold."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_scratch.hub.files import hash_file

LARGE = 2**26  # bytes of a file that is not hashed again where a record says its hash


def hash_text(text: str) -> str:
    """Return the hex SHA-256 of a string."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_input(value: str | Sequence[str]) -> str:
    """Hash what a path contains: a file's bytes, or a folder's files by name. A Hub id hashes as its own text.

    A large file is not read if the folder's stage noted its hash, and its size and its time are as they were then.
    """
    if not isinstance(value, str):
        return hash_text(json.dumps([hash_input(item) for item in value]))
    path = Path(value)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return hash_text(value)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "stage.json")
    noted = read_json(path / "stage.json").get("large_files", {})
    hashes = []
    for file in files:
        name = str(file.relative_to(path))
        known = noted.get(name, {})
        unchanged = known and known == _look(file) | {"sha256": known["sha256"]}
        hashes.append((name, known["sha256"] if unchanged else hash_file(file)))
    return hash_text(json.dumps(hashes))


def hash_large_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return hash, size and time of each large file in a folder by its name there, for a record."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.stat().st_size >= LARGE)
    return {file.name: _look(file) | {"sha256": hash_file(file)} for file in files}


def _look(file: Path) -> dict[str, int]:
    state = file.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file or it was cut off while being written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON; killed meanwhile, the process leaves the old file."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a metrics.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


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
