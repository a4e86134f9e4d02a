"""Exports a model for other programs and measures what that changed.

Each format is written beside its place, loaded by the program that it is for, compared with the original, and only
then put where it belongs and listed on the card. What may differ is stated there as it was measured.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from hf_scratch.export.int8 import write_int8
from hf_scratch.export.original import Original, load_original, missing_extra
from hf_scratch.export.transformers import write_stock
from hf_scratch.hub import client
from hf_scratch.hub.check import require
from hf_scratch.hub.exports import RECORD, check_exports, list_on_card, read_records, write_record


def export(
    model: str, kind: str, output: Path | None, text: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Export a folder or a repository of the Hub to a format and return the record of it.

    Raises:
        ValueError: The format cannot hold this model, what was written failed a check, or other files lie where the
            export should; nothing was put in place.
        ImportError: The extra `export` is not installed.
    """
    source = client.find_folder(model, "main", Path(HF_HUB_CACHE))
    if output is None and not Path(model).is_dir():
        raise ValueError(f"{model} is not a folder; say with --output where the export should lie.")
    folder = output or source / kind
    require_replaceable(folder, kind)
    original = load_original(source, text)
    say(f"{original.model.num_parameters():,} parameters; writing and verifying {folder} ...")
    place = folder.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
        beside = Path(scratch) / place.name
        beside.mkdir()
        measured, packages = writer(kind)(original, beside)
        versions = {name: version(name) for name in ("torch", "transformers", *packages)}
        write_record(beside, kind, original.reference.observed["weights"], measured, versions)
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
    if output is None:
        list_on_card(source)
        require(check_exports(source, original.reference.observed["weights"]), f"the exports in {source}")
        return read_records(source)[kind]
    return read_records(folder.parent).get(kind) or {"measured": measured}


def require_replaceable(folder: Path, kind: str) -> None:
    """Raise ValueError if the folder holds anything but an earlier export to this format."""
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ours = {RECORD, *record["files"]} if record.get("format") == kind else set()
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - ours)):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no part of an export to {kind}; give a new folder with --output, "
            "or move what lies there."
        )


def writer(kind: str) -> Callable[[Original, Path], tuple[dict[str, str], tuple[str, ...]]]:
    """Return the function that writes a format, verifies it, and returns what it measured and with which packages."""
    try:
        if kind == "gguf":
            from hf_scratch.export.gguf import write_gguf

            return write_gguf
        if kind == "onnx":
            from hf_scratch.export.onnx import write_onnx

            return write_onnx
    except ImportError as error:
        raise missing_extra(error) from None
    return {"transformers": write_stock, "int8": write_int8}[kind]
