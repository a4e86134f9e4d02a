"""What a data recipe says: the sources of text and the steps that each document goes through, read from YAML.

    sources:
      - {name: web, files: crawl/*.warc.gz, license: unknown}
      - {name: books, files: books/, type: gutenberg, license: public domain, weight: 2}
    steps:
      - fix_encoding
      - language: {keep: [en], min_score: 0.65}
      - exact_duplicates
      - near_duplicates: {n_grams: 5}

This file only reads and checks, before anything that takes time is loaded, so that mistakes are found at once.
"""

import glob
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.stage.config import suggest
from training.stage.files import hash_text

# fmt: off

SUFFIXES = {
    ".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".warc": "warc", ".wet": "warc", ".arc": "warc",
    ".xml": "mediawiki", ".html": "html", ".htm": "html",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
TABLES = ("jsonl", "csv", "tsv", "parquet")  # the kinds that hold rows
TYPES = (*dict.fromkeys(SUFFIXES.values()), "gutenberg", "code")
# Programming languages of a `code` source, by the names of its files.
LANGUAGES = {
    "c": (".c", ".h"), "c++": (".cc", ".cpp", ".cxx", ".hh", ".hpp"), "c#": (".cs",), "css": (".css",),
    "go": (".go",), "haskell": (".hs",), "html": (".html", ".htm"), "java": (".java",),
    "javascript": (".js", ".mjs", ".jsx"), "julia": (".jl",), "kotlin": (".kt",), "lua": (".lua",),
    "markdown": (".md",), "perl": (".pl", ".pm"), "php": (".php",), "python": (".py", ".pyi"), "r": (".r",),
    "restructuredtext": (".rst",), "ruby": (".rb",), "rust": (".rs",), "scala": (".scala",),
    "shell": (".sh", ".bash"), "sql": (".sql",), "swift": (".swift",), "typescript": (".ts", ".tsx"),
}
LANGUAGE_OF = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}

# Steps on one document, in the order of the recipe, and those that compare all documents and come last.
DOCUMENT_STEPS = (
    "fix_encoding", "normalize", "mask", "language", "gopher_quality", "gopher_repetition", "c4_quality",
    "fineweb_quality", "decontaminate",
)
TEXTS = {"files", "dataset", "stories"}  # of which a source has one
DUPLICATE_STEPS = ("exact_duplicates", "near_duplicates", "works")

# fmt: on


@dataclass(kw_only=True)
class DocumentSource:
    """Settings that name the text; the stages `tokenizer` and `data` share them."""

    files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, folders or globs: .txt, .md, .rst are a document; .jsonl, .json, .csv, .parquet hold many."
        },
    )
    dataset: str | None = field(default=None, metadata={"help": "Id of a Hub data set with a text column."})
    text_column: str = field(default="text", metadata={"help": "Column of tables and Hub data."})
    val_fraction: float = field(default=0.1, metadata={"help": "Share of the text that is held out."})
    num_stories: int = field(default=20000, metadata={"help": "Stories to generate where no files are given."})
    seed: int = field(default=0, metadata={"help": "Seed of the story generator and of shuffled shards."})
    sources: list[dict] = field(
        default_factory=list,
        metadata={"help": "Sources to clean and mix, in YAML only: see training/corpus/README.md."},
    )


@dataclass(frozen=True)
class Source:
    """One source of text; exactly one of `files`, `dataset` and `stories` is set."""

    name: str
    files: tuple[str, ...] = ()
    dataset: str | None = None
    stories: int = 0
    type: str | None = None  # of its files; by their suffix if not set
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    text_column: str = "text"
    id_column: str = "id"
    license: str = "unknown"
    weight: float = 1.0  # how often an epoch of the training data holds each document
    languages: tuple[str, ...] = ()  # programming languages of a `code` source; all that are known if empty
    licenses: tuple[str, ...] = ()  # licences that a `code` source may have; all if empty


@dataclass(frozen=True)
class Step:
    """One step with its options; `sources` limits it to some sources."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of a source."""

    source: Source
    path: str
    label: str  # what the ids of its documents begin with: the path below the folder or glob, the same on any machine
    size: int = 0  # in bytes


@dataclass(frozen=True)
class Share:
    """One of several equal shares of a data set on the Hub, or of the stories."""

    source: Source
    number: int  # from 0
    of: int


Unit = File | Share  # what a task reads in one go


def read_sources(entries: list[dict[str, Any]], files: Sequence[str] = ()) -> list[Source]:
    """Return the sources of a recipe.

    Args:
        files: For the source that names no text: what `--files` says.

    Raises:
        ValueError: An unknown key, a source without a name or without text, or one that names its text twice.
    """
    if files:
        open_ones = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and not TEXTS & entry.keys()]
        if len(open_ones) != 1:
            raise ValueError(
                f"--files is for the one source that names no text of its own; of the {len(entries)} sources here "
                f"{len(open_ones)} name none."
            )
        entries = [entry | {"files": list(files)} if i in open_ones else entry for i, entry in enumerate(entries)]
    sources = [_read_source(entry, number) for number, entry in enumerate(entries, start=1)]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are called {name!r}; each needs its own name.")
    return sources


def _read_source(entry: Any, number: int) -> Source:
    where = f"source {number}"
    if not isinstance(entry, dict) or not entry.get("name"):
        raise ValueError(f"{where} must be a mapping with a `name`, got {entry!r}.")
    where = f"source {entry['name']!r}"
    _check_keys(entry, list(Source.__dataclass_fields__), where)
    given = {key: entry[key] for key in entry}
    for key in ("files", "languages", "licenses"):
        if key in given:
            given[key] = (given[key],) if isinstance(given[key], str) else tuple(given[key])
            if key != "files":
                given[key] = tuple(str(name).lower() for name in given[key])
    for language in given.get("languages", ()):
        if language not in LANGUAGES:
            raise ValueError(f"{where} has the language {language!r}{suggest(language, list(LANGUAGES))}")
    source = Source(**given)
    texts = sorted(key for key in TEXTS if getattr(source, key))
    if len(texts) != 1:
        raise ValueError(
            f"{where} needs exactly one of files, dataset and stories; it has {' and '.join(texts) or 'none'}. "
            "Give files with --files, or name them in the recipe."
        )
    if source.type is not None and source.type not in TYPES:
        raise ValueError(f"{where} has type {source.type!r}{suggest(source.type, list(TYPES))}")
    if not isinstance(source.weight, int | float) or not 0 < source.weight < math.inf:
        raise ValueError(f"{where} has weight {source.weight!r}; it must be a number above 0.")
    return source


def read_steps(entries: list[Any], sources: list[Source]) -> list[Step]:
    """Return the steps of a recipe: a name, or a name with options.

    Raises:
        ValueError: An unknown step or source, a step named twice, or a step on one document after the duplicates.
    """
    steps = [_read_step(entry, sources) for entry in entries]
    names = [step.name for step in steps]
    for earlier, later in zip(steps, steps[1:], strict=False):
        exact_behind_near = (earlier.name, later.name) == ("near_duplicates", "exact_duplicates")
        if exact_behind_near or (earlier.name in DUPLICATE_STEPS and later.name in DOCUMENT_STEPS):
            raise ValueError(
                f"step {later.name} stands behind {earlier.name}; put exact_duplicates and near_duplicates last, "
                "in this order, with works before or after them: they compare documents as all other steps leave them."
            )
    for name in (*DUPLICATE_STEPS, "decontaminate"):
        if names.count(name) > 1:
            raise ValueError(f"step {name} is there twice; put into one what both of them say.")
    return steps


def _read_step(entry: Any, sources: list[Source]) -> Step:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"a step is a name, or a name with its options, got {entry!r}.")
    ((name, options),) = entry.items()
    known = [*DOCUMENT_STEPS, *DUPLICATE_STEPS]
    if name not in known:
        raise ValueError(f"{name!r} is not a step{suggest(str(name), known)}")
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"step {name}: its options must be `key: value` pairs, got {options!r}.")
    options = dict(options or {})
    only = options.pop("sources", ())
    only = (only,) if isinstance(only, str) else tuple(only)
    if name in DUPLICATE_STEPS and only:
        raise ValueError(f"step {name} compares the documents of all sources; leave `sources` out.")
    for wanted in only:
        _check_keys({wanted: None}, [source.name for source in sources], f"step {name}, sources")
    return Step(name, options, only)


def _check_keys(entry: dict[str, Any], known: list[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: {key!r} is not known{suggest(str(key), known)}")


def list_units(sources: list[Source], tasks: int) -> list[Unit]:
    """Return what the tasks read, in an order that depends on the recipe and the names of the files alone.

    Raises:
        ValueError: A pattern matches no file.
    """
    units: list[Unit] = []
    for source in sources:
        units += list_files(source) if source.files else [Share(source, number, tasks) for number in range(tasks)]
    return units


def list_files(source: Source) -> list[File]:
    """Return the files of a source, each once, by however many patterns and names.

    Raises:
        ValueError: A pattern matches no file.
    """
    files: dict[str, File] = {}
    for pattern in source.files:
        for path, label, size in find_files(pattern):
            files.setdefault(name_of(path), File(source, path, label, size))
    return list(files.values())


def evaluation_files(step: Step) -> list[File]:
    """Return the files that a step `decontaminate` looks for."""
    files = step.options.get("files", ())
    return list_files(Source("evaluation", (files,) if isinstance(files, str) else tuple(files)))


def expand_files(patterns: list[str]) -> list[str]:
    """Return the files that folders, globs and URLs mean, each once, in order.

    Raises:
        ValueError: A pattern matches no file, or one that cannot be taken as it is.
    """
    paths: dict[str, str] = {}
    for pattern in patterns:
        for path, _, _ in find_files(pattern):
            # As the user wrote it: absolute paths say more than a record of a run should.
            relative = "://" not in pattern and not os.path.isabs(os.path.expanduser(pattern))
            paths.setdefault(name_of(path), os.path.relpath(path) if relative else path)
    for path in paths.values():
        _refuse_unknown(path)
    return list(paths.values())


def _refuse_unknown(path: str) -> None:
    kind, _ = type_of(path)
    if kind is None:
        known = " ".join(suffix for suffix, name in SUFFIXES.items() if name in ("text", *TABLES))
        raise ValueError(
            f"{path}: its name does not tell what it holds; files are taken as they are if it ends in one of {known}, "
            f"packed or not ({' '.join(COMPRESSIONS)})."
        )
    if kind not in ("text", *TABLES):
        raise ValueError(
            f"{path} holds {kind}, which has to be taken apart to be text; name it in a recipe under `sources` "
            "(see training/corpus/README.md)."
        )


def find_files(pattern: str) -> list[tuple[str, str, int]]:
    """Return path, label and size of the files that a folder, a glob or an fsspec URL means, none of them hidden.

    A name that exists is taken as it is, even if it has signs of a glob in it.

    Raises:
        ValueError: It matches no file.
    """
    from fsspec.core import url_to_fs

    remote = "://" in pattern
    fs, path = url_to_fs(pattern if remote else os.path.expanduser(pattern))
    if fs.isdir(path):
        root, found = path, fs.find(path, detail=True)
    elif fs.isfile(path):
        root, found = path.rpartition("/")[0], {path: fs.info(path)}
    else:
        parts = path.split("/")
        roots = ("/".join(parts[:number]) for number in range(len(parts) - 1, 0, -1))
        root = next((root for root in roots if not glob.has_magic(root) or fs.isdir(root)), "")
        matched = fs.glob(glob.escape(root) + path[len(root) :], detail=True)
        found = {name: info for name, info in matched.items() if info["type"] == "file"}
    labels = {name: name.removeprefix(root).strip("/") for name in found}
    names = sorted(name for name in found if not any(part.startswith(".") for part in labels[name].split("/")))
    if not names:
        raise ValueError(f"{pattern} matches no file; check the path.")
    return [
        (fs.unstrip_protocol(name) if remote else name, labels[name], int(found[name]["size"] or 0)) for name in names
    ]


def name_of(path: str) -> str:
    """Return the name that a file has by whatever path it is reached."""
    return path if "://" in path else os.path.realpath(path)


def describe_files(sources: list[Source]) -> str:
    """Return what stands for the sources' content in the fingerprint: hashing terabytes would take hours."""
    files = [(file.label, file.size, modified(file.path)) for source in sources for file in list_files(source)]
    size = sum(file[1] for file in files)
    return f"{len(files)} files, {size} bytes, by name, size and time {hash_text(json.dumps(files))}"


def modified(path: str) -> float:
    """Return when a local file was changed, 0 for any other."""
    return Path(path).stat().st_mtime if "://" not in path else 0.0


def type_of(path: str) -> tuple[str | None, str | None]:
    """Return the type and the compression that a file's name tells, each None if it tells none."""
    name = path.lower()
    compression = next((COMPRESSIONS[suffix] for suffix in COMPRESSIONS if name.endswith(suffix)), None)
    if compression:
        name = name[: name.rindex(".")]
    dot = name.rfind(".")
    return SUFFIXES.get(name[dot:]) if dot > name.rfind("/") else None, compression


def learns_stories(record: dict[str, Any]) -> bool:
    """Whether a record of the stage `data` says that its text is the embedded stories."""
    if not record or record["config"].get("sources"):
        return False
    return "files" not in record["inputs"] and record["config"]["dataset"] is None
