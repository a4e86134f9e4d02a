"""What a chapter may name: files of this repository, settings of a stage, figures that a record holds.

A chapter writes them with a role, and a name that is not there fails the build and tests/test_guide.py:

    {path}`training/run.py`                    a file or folder
    {setting}`pretrain.learning_rate`          a setting of the stage, by its configuration class
    {measured}`99.5 % <quickstart/README.md>`  a figure, which stands like this in training/records/
    {measured}`99.5 % <seeds/README.md: Instruction followed>`  the same, in a line that begins with these words
"""

import ast
import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "training" / "records"
ROLE = re.compile(r"\{(path|setting|measured)\}`([^`]+)`")


def problem_of(role: str, text: str) -> str | None:
    """Return what is wrong with a name, None if it is there."""
    return {"path": _path, "setting": _setting, "measured": _measured}[role](text)


def split_measured(text: str) -> tuple[str, str]:
    """Return figure and record of the text of a {measured} role.

    Raises:
        ValueError: The text has another form.
    """
    match = re.fullmatch(r"(.+?)\s+<(.+)>", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{{measured}}`{text}` must be written as {{measured}}`figure <record>`.")
    return " ".join(match[1].split()), match[2]


def _path(text: str) -> str | None:
    return None if (ROOT / text).exists() else f"there is no file {text}"


def _setting(text: str) -> str | None:
    stage, _, name = text.partition(".")
    known = settings().get(stage, set())
    return None if name in known else f"the stage {stage} has no setting {name!r}; it has {', '.join(sorted(known))}"


def _measured(text: str) -> str | None:
    figure, place = split_measured(text)
    record, _, begin = place.partition(": ")
    if not (RECORDS / record).is_file():
        return f"there is no record {record}"
    held = (RECORDS / record).read_text(encoding="utf-8")
    if begin:
        held = "\n".join(line for line in held.splitlines() if line.lstrip("| ").startswith(begin))
    found = re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d|[.,]\d)", held)
    return None if found else f"the record {place} does not hold {figure!r}"


@lru_cache(maxsize=1)
def settings() -> dict[str, set[str]]:
    """Return the settings of each stage, read from its configuration class, `PretrainConfig` for `pretrain`."""
    classes: dict[str, ast.ClassDef] = {}
    for file in sorted((ROOT / "training").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes |= {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> set[str]:
        if name not in classes:
            return set()
        annotated = [node.target for node in classes[name].body if isinstance(node, ast.AnnAssign)]
        own = {target.id for target in annotated if isinstance(target, ast.Name)}
        named = classes[name].bases
        bases = (base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in named)
        return own.union(*(fields(base) for base in bases))

    return {name.removesuffix("Config").lower(): fields(name) for name in classes if name.endswith("Config")}
