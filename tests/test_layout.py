"""The arrows between the parts hold: training -> hf_scratch -> third party, and the Space imports nothing of ours.

Imports are read from the source, those inside functions too; what an import loads is seen in a new process.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

ROOT = Path(__file__).parent.parent
PARTS = ("hf_scratch", "training", "spaces_app", "benchmarks", "docs", "tests")
MAY_IMPORT = {
    "hf_scratch": {"hf_scratch"},
    "training": {"training", "hf_scratch"},
    "spaces_app": set(),
    "benchmarks": {"benchmarks", "training", "hf_scratch"},
    "docs": {"docs", "training", "hf_scratch"},
    "tests": {"docs", "training", "hf_scratch"},
}
FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
MODEL_FILES = [path for path in FILES if path.parent.name == "model"]

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(read(path)) if isinstance(node, ast.Import | ast.ImportFrom)]


def absolute_imports(path: Path) -> set[str]:
    """Return the top-level names that a file imports by `import name` or `from name import ...`."""
    names = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


def third_parties(part: str) -> set[str]:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == part]
    own = {part, *(path.stem for path in files)}
    return set().union(*(absolute_imports(path) for path in files)) - sys.stdlib_module_names - own


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


# ---- who imports whom ----


@every_file
def test_imports_follow_the_arrows(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    assert absolute_imports(path) & set(PARTS) <= MAY_IMPORT[part]


@every_file
def test_only_what_is_copied_beside_a_model_is_imported_relatively(path: Path) -> None:
    levels = [node.level for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level]
    if path.relative_to(ROOT).parts[0] == "hf_scratch" and path.parent.name in ("model", "hf_scratch"):
        assert set(levels) <= {1}
    else:
        assert not levels, "import it by its full name"


def rooms() -> dict[str, set[str]]:
    """Which folders of `training` and `hf_scratch` the files of each import; a file by itself is no room."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        place = path.relative_to(ROOT).parts
        if place[0] in ("training", "hf_scratch") and "records" not in place and place not in COMMAND_LINE:
            room = ".".join(place[:2]) if len(place) > 2 else place[0]
            for node in imports(path):
                for name in imported_modules(node, place):
                    parts = name.split(".")
                    other = ".".join(parts[:2]) if ROOT.joinpath(*parts[:2]).is_dir() else parts[0]
                    if other != room:
                        found.setdefault(room, set()).add(other)
    return found


def imported_modules(node: ast.Import | ast.ImportFrom, place: tuple[str, ...]) -> list[str]:
    """The modules of ours that an import names, as package.module."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        base = ".".join([*place[: -node.level]] if node.level else [])
        module = ".".join(filter(None, [base, node.module]))
        names = [f"{module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] in ("training", "hf_scratch")]


# What a folder may import: those before it. Commands stand beside the folders of `training` and may import all, as may
# the command line of the library.
COMMAND_LINE = (("hf_scratch", "cli.py"), ("hf_scratch", "chat.py"))
ROOMS = (
    "hf_scratch.model", "hf_scratch", "hf_scratch.hub", "hf_scratch.export", "training.stage", "training.engine",
    "training.stories", "training.corpus", "training.chat", "training.alignment", "training.evaluation", "training",
)  # fmt: skip


def test_no_import_runs_upward_and_none_in_a_circle() -> None:
    wrong = [
        (room, other) for room, others in rooms().items() for other in others if ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not wrong


def test_the_library_imports_its_declared_dependencies_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["export"]
    declared = {re.split(r"[^\w]", requirement)[0] for requirement in requirements}
    assert third_parties("hf_scratch") <= declared


def test_the_space_imports_what_its_requirements_name() -> None:
    lines = (ROOT / "spaces_app" / "requirements.txt").read_text().splitlines()
    declared = {re.split(r"[^\w]", line)[0] for line in lines if line[:1].isalpha()}
    assert third_parties("spaces_app") <= declared


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_model_files_import_third_parties_and_each_other_in_the_form_that_the_hub_reads(path: Path) -> None:
    assert "hf_scratch" not in absolute_imports(path)
    siblings = {node.module for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level}
    assert siblings <= {file.stem for file in MODEL_FILES}
    # What transformers finds with its own reading is what it copies beside the weights.
    assert siblings == set(get_relative_imports(path))


# ---- what an import loads ----


def test_importing_the_library_loads_nothing_heavy() -> None:
    loaded = json.loads(run_python("import json, sys, hf_scratch; print(json.dumps(list(sys.modules)))"))
    assert not {"torch", "transformers", "tokenizers", "trl", "datasets", "accelerate", "peft", "gradio"} & set(loaded)


COMMANDS = [path for path in sorted((ROOT / "training").glob("*.py")) if "@command" in path.read_text("utf-8")]
# What takes a second or more: a user who asks for help, or misspells an option, waits for none of it.
HEAVY = {"torch", "trl", "peft", "datasets", "accelerate", "matplotlib", "sklearn", "scipy", "pandas", "torchao"}
HEAVY |= {"transformers.modeling_utils", "datatrove", "lm_eval", "onnx", "gradio"}


@pytest.mark.parametrize("command", [*(f"training.{path.stem}" for path in COMMANDS), "hf_scratch.cli"])
def test_a_command_says_what_it_takes_before_anything_heavy_is_loaded(command: str) -> None:
    code = (
        "import json, runpy, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print(json.dumps(list(sys.modules)))\n"
    )
    said, _, loaded = run_python(code).rstrip().rpartition("\n")
    assert "usage:" in said
    assert not HEAVY & set(json.loads(loaded))


@pytest.mark.slow
def test_every_module_imports_and_no_training_library_comes_along() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if path.parts[-2] != "tests"]
    library = [name.removesuffix(".__init__") for name in names if name.startswith("hf_scratch")]
    code = f"import importlib, json, sys; [importlib.import_module(name) for name in {library}]"
    loaded = json.loads(run_python(code + "; from hf_scratch import *; print(json.dumps(list(sys.modules)))"))
    assert set(library) <= set(loaded)
    assert not {"trl", "datasets", "peft", "gradio"} & set(loaded)  # transformers itself loads accelerate


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import hf_scratch

    with pytest.raises(AttributeError, match="'hf_scratch' has no attribute 'ScratchModle'"):
        hf_scratch.ScratchModle  # noqa: B018


# ---- files ----


@every_file
def test_each_file_says_what_it_is_for_and_is_read_in_one_sitting(path: Path) -> None:
    docstring = ast.get_docstring(read(path))
    assert docstring and docstring[0].isupper() and docstring.split("\n\n")[0].rstrip().endswith((".", ":"))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@every_file
def test_docstrings_begin_alike(path: Path) -> None:
    """What a function returns is said as "Return ...", and of what is true or false as "Whether ..."."""
    for node in ast.walk(read(path)):
        if isinstance(node, ast.FunctionDef):
            begins = (ast.get_docstring(node) or "").split()[:2]
            assert begins[:1] not in (["Returns"], ["Yields"], ["Raises"]), node.name
            is_bool = node.returns is not None and ast.unparse(node.returns) == "bool"
            assert not (is_bool and begins == ["Return", "whether"]), node.name


# The model's own: their parameters and what they give are those of every model of Transformers, a line each.
LONG_BY_FORM = {"ScratchModel.forward", "ScratchForCausalLM.forward", "dataset_card"}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[len(ROOT.parts)] in ("training", "hf_scratch")],
                         ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    """40 lines from `def` to the last one, signature and docstring included; the training loop is no exception."""
    long = {
        f"{owner.name}.{node.name}" if isinstance(owner, ast.ClassDef) else node.name
        for owner in ast.walk(read(path))
        for node in ast.iter_child_nodes(owner)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno is not None and node.end_lineno - node.lineno >= 40
    }
    assert not long - LONG_BY_FORM


def test_the_model_is_read_in_one_sitting() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODEL_FILES) <= 600


@pytest.mark.parametrize("part", ["training", "spaces_app", "tests"])
def test_no_script_hides_an_installed_package(part: str) -> None:
    # A script's folder comes first on sys.path: `training/datasets.py` would replace the library.
    ours = {path.stem for path in (ROOT / part).glob("*.py")} | {path.name for path in (ROOT / part).iterdir()}
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not ours & (installed - {"__init__"})
