"""Files: hashes and second names, and what can be told of a model folder from its files alone.

Nothing is executed and nothing heavy is imported, so the checks of weights, pickles, code, secrets and paths come
first.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
NAME_CODE = {"auto_map", "impl", "custom_generate"}  # keys of settings whose values name code; pipelines have `impl`
# What remote code may import besides the standard library and its own folder: the stack that loads it has these.
STACK = {"torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy"}

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save is a zip
# How tokens and keys begin that give somebody's rights away, and the least that follows.
SECRET = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # within JSON a line break is spelled, too
    r"(?:hf_[A-Za-z0-9]{30,}|hf_(?:oauth|jwt)_[A-Za-z0-9_.-]{20,}|api_org_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{20,}|gsk_[A-Za-z0-9]{30,}|xai-[A-Za-z0-9]{30,}|[rs]k_live_[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|gl(?:pat|dt|rt|ptt|cbt|soat)-[A-Za-z0-9_.-]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}|A(?:KI|SI)A[0-9A-Z]{16}"
    r"|xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}|SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{30,}|dckr_pat_[A-Za-z0-9_-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|tmp|private|mnt|srv|var|opt|content|workspace)/[\w.-]+|\b[A-Za-z]:\\+Users\b"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and what was found."""

    name: str
    passed: bool
    detail: str = ""


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


def check_leaks(folder: Path, files: Sequence[Path]) -> Check:
    """Look for secrets and for paths of this machine in files of a folder that is to be published."""
    leaks = list(_leaks(folder, files))
    return Check("no secrets and no paths of this machine", not leaks, ", ".join(leaks[:5]))


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


def _leaks(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """Where a text file holds a secret or a path of this machine; the secret itself is not repeated."""
    here = [str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 2]
    for path in files:
        if path.name == "tokenizer.json":  # a vocabulary is learnt from text and may hold anything
            continue
        for number, line in enumerate(_lines(path), start=1):
            if SECRET.search(line):
                yield f"{path.name}, line {number}: looks like a secret"
            if LOCAL_PATH.search(line) or any(known in line for known in here):
                yield f"{path.name}, line {number}: a path of this machine"


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file if it is text, whatever its name."""
    with path.open("rb") as file:
        head = file.read(8192)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))  # UTF-16, as some programs of Windows write
    if wide or b"\0" not in head:
        with path.open(encoding="utf-16" if wide else "utf-8", errors="replace") as text:
            yield from text
