"""What README and guide say can be typed is typed: Python runs, commands exist with the options that are named."""

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
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
IN_PAGES = re.findall(r"```bash\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
IN_TABLES = re.findall(r"\| `(python -m [^`]+)` \|", README)


def commands_of(blocks: list[str]) -> list[str]:
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.split("#")[0].strip() for line in lines})


COMMANDS = commands_of([block for language, block in BLOCKS if not language])
MODULES = ("python -m training.", "python -m benchmarks.", "python -m docs.baseline")
PYTHON: dict[str, set[str]] = {}  # options by module, each of which is asked for its help once
for line in commands_of([*COMMANDS, *IN_PAGES, *IN_TABLES]):
    if line.startswith(MODULES):
        words = shlex.split(line)
        PYTHON.setdefault(words[2], set()).update(word for word in words if word.startswith("--"))


def test_the_make_targets_exist() -> None:
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert set(targets) == {"quickstart", "test", "demo", "demo-browser"}
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_files_it_names_exist() -> None:
    paths = re.findall(r"\]\((?!http)([^)#]+)", README) + re.findall(r"^(\S+\.py)\b", README, re.MULTILINE)
    assert len(paths) > 8 and [path for path in paths if not (ROOT / path).exists()] == []
    headings = re.findall(r"^#+ (.*)", PAGES["reference.md"], re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(docs/reference\.md#([^)]+)\)", README)) <= anchors
    prose = re.sub(r"```.*?```", "", "\n".join(PAGES.values()), flags=re.DOTALL)
    in_pages = set(re.findall(r"\]\((?!http)([^)#]+)", prose))
    assert "03-attention.md" in in_pages and not [path for path in in_pages if not (ROOT / "docs" / path).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(PYTHON))
def test_its_commands_have_the_options_it_names(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [option for option in PYTHON[module] if option not in shown]


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
