"""The page that runs a model in the visitor's browser, as a folder to publish: which models fit, and its manifest."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

BuildPage = Callable[[Path, Mapping[str, Path], Path, Callable[[str], None]], None]

# Bytes of weights in 16 bits: what people wait for (20 s at 100 Mbit/s), and what one thread of a phone still answers
# with in reading speed. WebAssembly itself would take 2 GB.
MAX_BYTES = 250_000_000
STAGES = ("base", "sft", "dpo")  # that a release may have beside its model, in the order of training


def size(folder: Path) -> int:
    """Return the bytes that a model's weights have in 16 bits, read from the headers alone."""
    bytes_in_16_bits = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            bytes_in_16_bits += sum(2 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return bytes_in_16_bits


def fits(folder: Path) -> bool:
    """Whether a model is small enough for a browser."""
    return size(folder) <= MAX_BYTES


def page_models(release: Path) -> dict[str, Path]:
    """Return the folders of the models that the page shows, by stage, the released one first."""
    stages = {name: release / "stages" / name for name in reversed(STAGES)}
    found = {name: folder for name, folder in stages.items() if (folder / "config.json").is_file()}
    return {"released": release / "model"} | {name: folder for name, folder in found.items() if fits(folder)}


def pin_page(folder: Path, model_id: str, commit: str, url: str) -> None:
    """Say in the manifest which commit the weights were made from."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["source"] = {"id": model_id, "revision": commit, "url": f"{url}/{model_id}/tree/{commit}"}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with all small files listed, which the page keeps for a visit without network."""
    large = (".wasm", ".gguf", ".md")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if not name.endswith(large) and not name.startswith("vendor/wllama-compat")]
    manifest["files"] = ["./", *sorted({*kept, "manifest.json"} - {"sw.js"})]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
