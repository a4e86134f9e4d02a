"""What an export leaves beside its files: of which weights it was made, hashes, size, and what was measured.

The record lets a release be checked again when it is published, and fills the table of formats on the card.
"""

import json
import re
from pathlib import Path
from typing import Any

from hf_scratch.hub.check import Check
from hf_scratch.hub.files import hash_file

FORMATS = ("transformers", "gguf", "int8", "onnx")
RECORD = "export.json"
BEGIN, END = "<!-- formats -->", "<!-- end of formats -->"
USE = {
    "transformers": "transformers serve here/transformers                          # or: vllm serve",
    "gguf": "llama-cli -m here/gguf/model-q8_0.gguf                        # llama.cpp\n"
    "ollama create my-model -f here/gguf/Modelfile && ollama run my-model",
    "int8": "hf-scratch chat here/int8",
}
ABOUT = {
    "transformers": "stock `qwen3` checkpoint, no remote code",
    "gguf": "llama.cpp, Ollama, LM Studio",
    "int8": "8-bit weights by torchao, loads by `from_pretrained`",
    "onnx": "ONNX Runtime",
}
GREEDY = """\
Where two next tokens are almost as likely, rounding decides between them, differently on each kind of processor, and
the texts go apart from there. So of greedy tokens few may be the same although little is lost; what a file's rounding
costs is the change of bits per byte, measured with the weights as the file holds them."""


def write_record(folder: Path, kind: str, weights: str, measured: dict[str, str], versions: dict[str, str]) -> None:
    """Write `export.json` with the SHA-256 of each file in the folder.

    Args:
        weights: SHA-256 of the weights that were exported.
        measured: For each file or for the whole (""), what differs from the original, as a sentence.
    """
    files = {path.name: path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD}
    content = {
        "format": kind,
        "source_weights": weights,
        "files": {name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for name, path in files.items()},
        "measured": measured,
        "versions": versions,
    }
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of the exports in a model's folder, by format."""
    paths = {kind: folder / kind / RECORD for kind in FORMATS}
    return {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in paths.items() if path.is_file()}


def check_exports(folder: Path, weights: str) -> list[Check]:
    """Check that each export is the one that was verified, and was made of these weights."""
    checks = []
    for kind, record in read_records(folder).items():
        wrong = [
            name
            for name, about in record["files"].items()
            if not (folder / kind / name).is_file() or hash_file(folder / kind / name) != about["sha256"]
        ]
        if record["source_weights"] != weights:
            wrong.append("it was made of other weights; export it again")
        checks.append(Check(f"{kind} export is the one that was verified", not wrong, ", ".join(wrong)))
    return checks


def list_on_card(folder: Path) -> None:
    """Write the formats and their use into the model's card, in place of an earlier table."""
    card = folder / "README.md"
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].lstrip("\n")
    if not rest:
        before, mark, after = text.partition("## Results\n")
        after = mark + after
    records, named = read_records(folder), re.search(r'^name = "(.+?)"', text, re.MULTILINE)
    use = commands(list(records), named[1] if named else "ID")
    section = "\n".join([BEGIN, "## Other formats", "", table(records), "", use, END])
    card.write_text(f"{before.rstrip()}\n\n{section}\n\n{after}".rstrip() + "\n", encoding="utf-8")


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the formats as a Markdown table with sizes and measured differences."""
    lines = ["| folder | what | size | compared with the weights above |", "| --- | --- | ---: | --- |"]
    for kind, record in records.items():
        sizes = {name: about["bytes"] for name, about in record["files"].items()}
        for name, found in record["measured"].items():
            size = sizes[name] if name else sum(sizes.values())
            where = f"`{kind}/{name}`"
            lines.append(f"| {where} | {ABOUT[kind]} | {size / 1e6:,.1f} MB | {found} |")
    if "gguf" in records:
        lines += ["", GREEDY]
    return "\n".join(lines)


def commands(kinds: list[str], repo_id: str) -> str:
    """Return how to get and use the formats."""
    lines = [f"hf download {repo_id} --local-dir here", *(USE[kind] for kind in kinds if kind in USE)]
    return "```\n" + "\n".join(lines) + "\n```"
