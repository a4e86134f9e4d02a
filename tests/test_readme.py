"""What the README says can be typed is typed: its Python runs, its commands exist with the options it names."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from training.engine.save import save_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(
    {line.split("#")[0].strip() for language, block in BLOCKS if not language for line in block.splitlines()}
)
PYTHON = [shlex.split(line) for line in COMMANDS if line.startswith(("python -m training.", "python -m benchmarks."))]


def test_the_make_targets_exist() -> None:
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert set(targets) == {"quickstart", "test", "demo", "demo-browser"}
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_files_it_names_exist() -> None:
    paths = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"^(\S+\.py)\b", README, re.MULTILINE)
    assert len(paths) > 8 and [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", PYTHON, ids=lambda words: words[2])
def test_its_commands_have_the_options_it_names(words: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", words[2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.stdout


def test_its_python_runs(
    tiny_model: ScratchForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerBase,
    run_without_hf_scratch: Callable[..., str],
    tmp_path: Path,
) -> None:
    use, build = (block for language, block in BLOCKS if language == "python")
    save_model(tiny_model, tiny_tokenizer, tmp_path / "model")
    code = use.replace("runs/quickstart/release/model", str(tmp_path / "model"))
    printed = run_without_hf_scratch(code)
    assert "Tell me a story about a fox named Pip" in printed and "custom code" not in printed, "nobody is asked"
    shown = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "981,376 parameters\n"
