"""Checks a model folder before somebody else relies on it: its files, and what a clean process makes of it.

The clean process has an empty cache, no network and no way to import this package. Given what the model said in the
process that trained it, weights, logits and a greedy answer must be the same.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import clean_process

MAX_DIFFERENCE = 1e-5  # of logits; the same weights on the same machine give 0
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
BLOCKED = ("hf_scratch", "training")
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox who lost a kite."}]

TEXT_SUFFIXES = {".json", ".jsonl", ".md", ".py", ".jinja", ".txt", ".yaml", ".yml", ".html", ""}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save is a zip
SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b"
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


@dataclass(frozen=True)
class Reference:
    """What the model in memory makes of a conversation; the folder must make the same of it."""

    messages: list[dict[str, str]]
    observed: dict[str, Any]


def make_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]] = MESSAGES
) -> Reference:
    """Observe a model on the CPU, in the number format in which it will be saved."""
    return Reference(messages, clean_process.observe(model.eval(), tokenizer, messages))


def verify(folder: Path | str, reference: Reference | None = None) -> list[Check]:
    """Return the checks of a model folder; without a reference, nothing is compared with one.

    The folder's code is executed, unless its files alone fail a check.
    """
    folder = Path(folder)
    checks = check_files(folder)
    if not all(check.passed for check in checks):
        return checks
    with tempfile.TemporaryDirectory() as work:
        found = run_clean_process(folder, Path(work), reference.messages if reference else MESSAGES)
    checks += [Check(**check) for check in found["checks"]]
    if reference and found["observed"]:
        checks += compare(reference.observed, found["observed"])
    return checks


def require(checks: Sequence[Check], what: str) -> None:
    """Raise ValueError with the names of the checks that failed, if there are any."""
    failed = [f"{check.name} ({check.detail})" for check in checks if not check.passed]
    if failed:
        raise ValueError(f"{what} failed {len(failed)} of {len(checks)} checks: {'; '.join(failed)}")


# ---- files ----


def check_files(folder: Path) -> list[Check]:
    """Look at the files alone: weights, code, secrets and paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pickles = [path.name for path in files if path.suffix in PICKLE_SUFFIXES or _head(path).startswith(PICKLE_STARTS)]
    has_weights = any(path.suffix == ".safetensors" for path in files)
    leaks = list(_leaks(folder, files))
    missing = _missing_code(folder)
    return [
        Check("weights are safetensors", has_weights, "" if has_weights else "no .safetensors file"),
        Check("no pickle", not pickles, ", ".join(pickles)),
        Check("the code that config.json names is there", not missing, ", ".join(missing)),
        Check("no secrets and no paths of this machine", not leaks, ", ".join(leaks[:5])),
    ]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _missing_code(folder: Path) -> list[str]:
    """Files and entries of `auto_map` that are not there; a model of transformers' own needs none."""
    path = folder / "config.json"
    if not path.is_file():
        return ["config.json"]
    auto_map = json.loads(path.read_text(encoding="utf-8")).get("auto_map", {})
    files = {reference.split(".")[0] + ".py" for reference in auto_map.values()}
    entries = [name for name in AUTO_CLASSES if auto_map and name not in auto_map]
    return [*entries, *sorted(name for name in files if not (folder / name).is_file())]


def _leaks(folder: Path, files: list[Path]) -> Iterator[str]:
    """Where a text file holds a secret or a path of this machine; the secret itself is not repeated."""
    here = [str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 2]
    for path in files:
        # A vocabulary is learnt from text and may hold anything.
        if path.suffix not in TEXT_SUFFIXES or path.name == "tokenizer.json":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if SECRET.search(line):
                yield f"{path.name}, line {number}: looks like a secret"
            if LOCAL_PATH.search(line) or any(known in line for known in here):
                yield f"{path.name}, line {number}: a path of this machine"


# ---- the clean process ----


def run_clean_process(folder: Path, work: Path, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Run clean_process.py with nothing of this process but PATH, and return what it wrote down."""
    request = {"messages": messages, "blocked": BLOCKED, "threads": torch.get_num_threads()}
    (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if key in os.environ}
    environment = kept | {
        "HOME": str(work),
        "HF_HOME": str(work / "hf"),
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-I", clean_process.__file__, str(folder.resolve()), str(work)]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return {"checks": [Check("the clean process ends", False, last).__dict__], "observed": None}
    found: dict[str, Any] = json.loads((work / "found.json").read_text(encoding="utf-8"))
    if found["observed"]:
        found["observed"]["logits"] = load_file(work / "logits.safetensors")["logits"]
    return found


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[Check]:
    """Compare two observations of one conversation: weights, prompt, logits and greedy answer."""
    same_prompt = expected["prompt_ids"] == found["prompt_ids"]
    checks = [
        Check("weights equal, bit for bit", expected["weights"] == found["weights"]),
        Check("prompt encoded alike", same_prompt, f"{len(found['prompt_ids'])} tokens"),
    ]
    if same_prompt and expected["logits"].shape == found["logits"].shape:
        difference = float((expected["logits"] - found["logits"]).abs().max())
        detail = "bit-equal" if difference == 0 else f"largest difference {difference:.1e}"
        checks.append(Check("logits equal", difference <= MAX_DIFFERENCE, detail))
    end = "ends with an end token" if found["ended"] else "cut off without an end token"
    same_answer = expected["answer_ids"] == found["answer_ids"]
    return [*checks, Check("greedy answer equal", same_answer, f"{len(found['answer_ids'])} tokens, {end}")]
