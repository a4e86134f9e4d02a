"""Hashes and links of files, and the checks of a model folder that need its files alone.

These checks come first: they execute nothing and import nothing heavy.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_scratch.hub.check import Check
from hf_scratch.hub.leaks import check_leaks

AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
NAME_CODE = {"auto_map", "impl", "custom_generate"}  # keys of settings whose values name code; pipelines have `impl`
# What remote code may import besides the standard library and its own folder: the stack that loads it has these.
STACK = {"torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy"}

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save is a zip


def check_files(folder: Path) -> list[Check]:
    """Look at the files alone: weights, code, secrets and paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pickles = [path.name for path in files if path.suffix in PICKLE_SUFFIXES or _head(path).startswith(PICKLE_STARTS)]
    no_weights = _missing_weights(folder)
    missing, foreign = _missing_code(folder), list(_foreign_imports(folder))
    return [
        Check("weights are safetensors", not no_weights, no_weights),
        Check("no pickle", not pickles, ", ".join(pickles)),
        Check("the code that config.json names is there", not missing, ", ".join(missing)),
        Check("the code imports transformers' stack and itself only", not foreign, ", ".join(foreign)),
        check_leaks(folder, files),
    ]


def hash_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name in place of what has that name, or copy it where the file system has no such thing."""
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(source.resolve())
    except OSError:
        shutil.copy2(source, path)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json, empty if there is none.

    Raises:
        ValueError: It is not an object of JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__} and not settings by name; restore it.")
    return config


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _missing_weights(folder: Path) -> str:
    """Say which weights are not there, of all or of those that the index of shards names."""
    if not any(folder.glob("*.safetensors")):
        return "no .safetensors file"
    index = folder / "model.safetensors.index.json"
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    missing = sorted({name for name in named if not (folder / name).is_file()})
    return f"{', '.join(missing)} is missing" if missing else ""


def code_elsewhere(folder: Path) -> list[str]:
    """Return what would be loaded from outside the folder: code that its settings name, and folders that are links.

    Programs take `user/name--module.Class` for code of another repository or folder, and a module may be a path.
    """
    links = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_symlink()]
    return [
        *(f"{place} names {name}" for place, name, file in _named_code(folder) if file is None),
        *(f"{name} is a link to a folder" for name in links if (folder / name).is_dir()),
    ]


def _missing_code(folder: Path) -> list[str]:
    """Files and entries of `auto_map` that are not there; a model of transformers' own needs none."""
    config = read_config(folder)
    if not config:
        return ["config.json"]
    auto_map = config.get("auto_map")
    entries = [name for name in AUTO_CLASSES if auto_map and name not in auto_map]
    files = {file.name for _, _, file in _named_code(folder) if file and not file.is_file()}
    return [*entries, *sorted(files), *code_elsewhere(folder)]


def _named_code(folder: Path) -> Iterator[tuple[str, str, Path | None]]:
    """Yield each class that a file of settings says to load, with that file's name and the code's file, None outside.

    Of the model, the tokenizer and whatever else has settings: processors, generation, pipelines.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # nothing can be loaded by it
            continue
        for name in _class_names(settings, named=False):
            if re.fullmatch(r"\w+(-\w+)*", name):  # no code: some setting of that name
                continue
            # normpath, not resolve: files of the Hub's cache are links to where their content is.
            file = Path(os.path.normpath(folder / f"{name.split('.')[0]}.py"))
            inside = "--" not in name and len(name.split(".")) == 2 and file.is_relative_to(os.path.normpath(folder))
            yield path.name, name, file if inside else None


def _class_names(value: Any, named: bool) -> Iterator[str]:
    """Yield the strings under the keys that name code, at any depth: a tokenizer's entry is a pair, slow and fast."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _class_names(entry, named or key in NAME_CODE)
    elif isinstance(value, list):
        for entry in value:
            yield from _class_names(entry, named)
    elif named and isinstance(value, str):
        yield value


def _foreign_imports(folder: Path) -> Iterator[str]:
    """Imports of the folder's code that another machine cannot satisfy, inside functions too."""
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            yield f"{path.name}, line {error.lineno}: not Python"
            continue
        for node in ast.walk(tree):
            for name in _imported(node):
                known = (folder / f"{name[1:]}.py").is_file() if name.startswith(".") else _in_stack(name)
                if not known:
                    yield f"{path.name}: {name}"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")] if node.level else [str(node.module).split(".")[0]]
    return []


def _in_stack(name: str) -> bool:
    return name in STACK or name in sys.stdlib_module_names
