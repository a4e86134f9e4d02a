"""The guide cannot drift from the code: its names are there, its cells run, its exercises can be solved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs import names
from docs.exercises import check

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHAPTERS = sorted(DOCS.glob("[0-9][0-9]-*.md"))
chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_names_is_there(path: Path) -> None:
    named = names.ROLE.findall(path.read_text(encoding="utf-8"))
    assert not [problem for role, text in named if (problem := names.problem_of(role, text))]


def test_a_name_that_is_not_there_is_found() -> None:
    assert "no file" in str(names.problem_of("path", "training/nothing.py"))
    assert "no setting" in str(names.problem_of("setting", "pretrain.learning_rte"))
    assert "does not hold" in str(names.problem_of("measured", "123.4 % <quickstart/README.md>"))


@chapters
def test_a_chapter_is_in_the_contents_and_has_a_quiz_and_exercises(path: Path) -> None:
    number = int(path.stem[:2])
    assert f"\n{path.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8")
    (quiz,) = re.findall(rf"^## {number}\. .*\n\n```{{quiz}} (\w+)", (DOCS / "quiz.md").read_text(), re.MULTILINE)
    assert f"```{{answers}} {quiz}\n" in (DOCS / "answers.md").read_text(encoding="utf-8")
    assert f"{number}.1" in check.names() and f"{number}.2" in check.names()


@pytest.mark.parametrize("path", sorted((DOCS / "quiz").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_quiz_has_five_questions_with_one_right_option_each_and_says_why(path: Path) -> None:
    questions = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(questions) == 5
    for question in questions:
        options = question["options"]
        assert sum(bool(option.get("right")) for option in options) == 1 < len(options)
        assert all(option["why"].strip() for option in options)


@pytest.mark.slow
@pytest.mark.parametrize("name", check.names())
def test_a_solution_passes_and_the_empty_exercise_does_not(name: str) -> None:
    check.check(name, check.load(name, solution=True))
    with pytest.raises(NotImplementedError):
        check.check(name, check.load(name, solution=False))


@pytest.mark.slow
def test_every_cell_runs_and_the_pages_ask_no_other_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "read")]
    command += ["-D", f"nb_execution_cache_path={tmp_path / 'cells'}", "docs", str(tmp_path / "html")]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert built.returncode == 0, built.stderr[-3000:]
    pages = list((tmp_path / "html").glob("*.html"))
    assert {path.stem for path in CHAPTERS} <= {page.stem for page in pages}
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page.name
