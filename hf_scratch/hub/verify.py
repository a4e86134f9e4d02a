"""Checks a model folder before somebody else relies on it: its files, and what a clean process makes of it.

The clean process has an empty cache, no network where the system can cut it off, and no way to import this package.
Given what the model said in the process that trained it, weights, logits and a greedy answer must be the same.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch import clean_process
from hf_scratch.hub import client
from hf_scratch.hub.check import Check
from hf_scratch.hub.exports import check_exports
from hf_scratch.hub.files import check_files, code_elsewhere, hash_file

MAX_DIFFERENCE = 1e-5  # of logits; the same weights on the same machine give 0
ROUNDINGS = 8  # that logits of 16 bits may differ by, in steps of the largest of them
BLOCKED = ("hf_scratch", "training")
SECONDS, SECONDS_PER_GB = 600, 300  # that the clean process may take: at all, and more for each 1e9 bytes of weights
# What runs a command without network, and ends with it all that it has started; a container may allow none of them.
CUT_OFF = (
    ("unshare", "--net", "--pid", "--fork", "--kill-child"),
    ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"),
    ("bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-pid", "--die-with-parent"),
)
FOLDER = "verification"  # of a release: what its model said when it was trained
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox who lost a kite."}]


@dataclass(frozen=True)
class Reference:
    """What the model in memory makes of a conversation; the folder must make the same of it."""

    messages: list[dict[str, str]]
    observed: dict[str, Any]
    chats: bool = False  # trained on conversations


def make_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]] = MESSAGES
) -> Reference:
    """Observe a model on the CPU, in the number format in which it will be saved."""
    return Reference(messages, clean_process.observe(model.eval(), tokenizer, messages))


def save_reference(reference: Reference, folder: Path, chats: bool) -> None:
    """Write the reference into a release, so that anybody can compare with it later.

    A folder of its own, because programs take every safetensors file beside `config.json` for weights.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    observed = dict(reference.observed)
    save_file({"logits": observed.pop("logits")}, folder / FOLDER / "logits.safetensors")
    content = {"messages": reference.messages, "chats": chats, "observed": observed}
    (folder / FOLDER / "reference.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_reference(folder: Path) -> Reference | None:
    """Return what `save_reference` wrote into the folder, None if it holds no reference.

    Raises:
        ValueError: A part of it is missing or cut off.
    """
    if not (folder / FOLDER).is_dir():
        return None
    try:
        content = json.loads((folder / FOLDER / "reference.json").read_text(encoding="utf-8"))
        content["observed"]["logits"] = load_file(folder / FOLDER / "logits.safetensors")["logits"]
        return Reference(content["messages"], content["observed"], content["chats"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder / FOLDER} cannot be read ({error}); make the release again.") from None


def verify(folder: Path | str, reference: Reference | None = None) -> list[Check]:
    """Return the checks of a model folder; without a reference, nothing is compared with one.

    The folder's code is executed, unless its files alone fail a check.
    """
    checks, observed = load_in_clean_process(Path(folder), reference)
    if reference and observed:
        checks += compare(reference.observed, observed)
    return checks


def load_in_clean_process(
    folder: Path, reference: Reference | None, *, base_loads: bool = True
) -> tuple[list[Check], dict[str, Any] | None]:
    """Return the checks that need no comparison, and what a clean process makes of the reference's conversation.

    Args:
        base_loads: Whether AutoModel must load the folder too; quantized weights load by AutoModelForCausalLM only.
    """
    checks = check_files(folder)
    if not all(check.passed for check in checks):
        return checks, None
    with tempfile.TemporaryDirectory() as work:
        found, checks_of_it = run_clean_process(folder, Path(work), reference, base_loads)
    return checks + checks_of_it, found


def check_ending(reference: Reference) -> Check:
    """Whether the model ends its answer; what was not trained to chat need not."""
    ended = reference.observed["ended"]
    detail = "" if ended else "cut off without an end token" + ("" if reference.chats else ", as a base model may be")
    return Check("the answer ends with an end token", ended or not reference.chats, detail)


def verify_anywhere(model: str, revision: str = "main", trust_remote_code: bool = False) -> list[Check]:
    """Return the checks of a folder or of a repository of the Hub, compared with its own reference if it has one.

    Code that is not this package's own, byte for byte, is run only if it is trusted; else files and exports alone are
    checked, and the model, which was not loaded, does not pass.
    """
    with tempfile.TemporaryDirectory() as cache:
        folder = client.find_folder(model, revision, Path(cache))
        if (foreign := foreign_code(folder)) and not trust_remote_code:
            about = f"not run: give --trust-remote-code to run code of its own, {', '.join(foreign)}"
            not_run = Check("loads in a clean process", False, about)
            return [*check_files(folder), *compare_exports(folder, load_reference(folder)), not_run]
        return verify_with_exports(folder)


def foreign_code(folder: Path) -> list[str]:
    """Return the code of a folder that is not a copy of what this package ships with a model, or not in it at all."""
    package = Path(__file__).parent.parent
    ours = {hash_file(path) for path in (*package.glob("model/*.py"), package / "fast_generate.py")}
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".py" and path.is_file())
    return [*(path.name for path in files if hash_file(path) not in ours), *code_elsewhere(folder)]


def verify_with_exports(folder: Path, reference: Reference | None = None) -> list[Check]:
    """Return all checks of a model folder and of what it was exported to; its own reference is the default."""
    reference = reference or load_reference(folder)
    exports = compare_exports(folder, reference)
    if not all(check.passed for check in exports):
        return [*check_files(folder), *exports]
    return [*verify(folder, reference), *exports]


def compare_exports(folder: Path, reference: Reference | None) -> list[Check]:
    """Return the checks that a reference allows without loading the model: of the exports, and of its answer's end."""
    return [*check_exports(folder, reference.observed["weights"]), check_ending(reference)] if reference else []


# ---- the clean process ----


def bare_environment(work: Path) -> dict[str, str]:
    """Return environment variables with nothing of this process but where programs lie, which of the processor's
    instructions may be used, and caches of their own."""
    names = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    kept = {key: os.environ[key] for key in names if key in os.environ}
    return kept | {
        "HOME": str(work),
        "HF_HOME": str(work / "hf"),
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_clean_process(
    folder: Path, work: Path, reference: Reference | None, base_loads: bool
) -> tuple[dict[str, Any] | None, list[Check]]:
    """Run clean_process.py with nothing of this process but PATH; return what it observed, and its checks."""
    request = {
        "messages": reference.messages if reference else MESSAGES,
        "needs_template": reference is not None,
        "base_loads": base_loads,
        "blocked": BLOCKED,
        "threads": torch.get_num_threads(),
    }
    (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
    cut_off = find_cut_off()
    command = [*cut_off, sys.executable, "-I", clean_process.__file__, str(folder.resolve()), str(work)]
    gigabytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    limit = round(SECONDS + SECONDS_PER_GB * gigabytes)
    with (work / "said").open("w+", encoding="utf-8", errors="replace") as said:
        try:
            subprocess.run(
                command, cwd=work, env=bare_environment(work), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                timeout=limit, check=True,
            )  # fmt: skip
            found: dict[str, Any] = json.loads((work / "found.json").read_text(encoding="utf-8"))
        except subprocess.TimeoutExpired:
            return None, [Check("the clean process ends", False, f"stopped after {limit:,} s")]
        except (subprocess.CalledProcessError, OSError):
            said.seek(0)
            last = (said.read().strip().splitlines() or ["no message"])[-1]
            return None, [Check("the clean process ends", False, last)]
    if found["observed"]:
        found["observed"]["logits"] = load_file(work / "logits.safetensors")["logits"]
    apart = Check("the Hub is switched off", True, "the network is not: here is neither unshare nor bwrap to do it")
    if cut_off:
        apart = Check("the network is cut off", True, f"by {cut_off[0]}")
    return found["observed"], [apart, *(Check(**check) for check in found["checks"])]


def find_cut_off() -> tuple[str, ...]:
    """Return the words before a command that run it without network; none where the system cannot do it."""
    for words in CUT_OFF:
        if shutil.which(words[0]) and not subprocess.run([*words, "true"], capture_output=True).returncode:
            return words
    return ()


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[Check]:
    """Compare two observations of one conversation: weights, prompt, logits and greedy answer."""
    same_prompt = expected["prompt_ids"] == found["prompt_ids"]
    checks = [
        Check("weights equal, bit for bit", expected["weights"] == found["weights"]),
        Check("prompt encoded alike", same_prompt, f"{len(found['prompt_ids'])} tokens"),
    ]
    rounded = False
    if same_prompt and expected["logits"].shape == found["logits"].shape:
        difference = float((expected["logits"] - found["logits"]).abs().max())
        detail = "bit-equal" if difference == 0 else f"largest difference {difference:.1e}"
        allowed = what_rounding_allows(expected["logits"])
        rounded = MAX_DIFFERENCE < allowed and difference <= allowed
        checks.append(Check("logits equal", difference <= allowed, detail))
    end = "ends with an end token" if found["ended"] else "cut off without an end token"
    same_answer = expected["answer_ids"] == found["answer_ids"]
    if rounded and not same_answer:  # tokens that were almost as likely; from there on the texts are two
        end += ", not the answer of the processor that made the release, as 16 bits round on each their own way"
    return [*checks, Check("greedy answer equal", same_answer or rounded, f"{len(found['answer_ids'])} tokens, {end}")]


def what_rounding_allows(logits: torch.Tensor) -> float:
    """Return how far another processor's logits may be: a few times what their type rounds the largest of them by.

    In which type they were computed is seen in the numbers themselves: 16 bits hold them all without loss.
    """
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(logits.to(dtype).float(), logits):
            return max(MAX_DIFFERENCE, ROUNDINGS * torch.finfo(dtype).eps * float(logits.abs().max()))
    return MAX_DIFFERENCE
