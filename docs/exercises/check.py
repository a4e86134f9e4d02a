"""Test your solution of an exercise.

python -m docs.exercises.check 3.1              # the function in docs/exercises/chapter3.py
python -m docs.exercises.check 3.1 --solution   # ours, in docs/exercises/solutions/chapter3.py
"""

import argparse
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the exercises there are: 1.1, 1.2, 2.1, ..."""
    chapters = sorted(int(path.stem.removeprefix("chapter")) for path in (HERE / "checks").glob("chapter*.py"))
    return [f"{chapter}.{number}" for chapter in chapters for number in (1, 2)]


def check(name: str, code: ModuleType) -> None:
    """Run the check of an exercise on a module that solves it.

    Raises:
        AssertionError: The solution does something else; the message says what.
        NotImplementedError: It is not written yet.
    """
    chapter, number = name.split(".")
    checks = importlib.import_module(f"docs.exercises.checks.chapter{chapter}")
    getattr(checks, f"check_{number}")(code)


def load(name: str, solution: bool) -> ModuleType:
    """Return the module with the reader's code, or with ours."""
    return importlib.import_module(f"docs.exercises.{'solutions.' if solution else ''}chapter{name.split('.')[0]}")


def main() -> None:
    """Check one exercise and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exercise", help="for example 3.1")
    parser.add_argument("--solution", action="store_true", help="check our solution and not yours")
    arguments = parser.parse_args()
    if arguments.exercise not in names():
        sys.exit(f"there is no exercise {arguments.exercise}; there are {', '.join(names())}.")
    name = arguments.exercise
    try:
        code = load(name, arguments.solution)
        check(name, code)
    except NotImplementedError:
        sys.exit(f"{name} is not written yet: fill in its function in docs/exercises/chapter{name.split('.')[0]}.py.")
    except AssertionError as error:
        sys.exit(f"{name} is not right yet: {error or 'read its check in docs/exercises/checks'}.")
    except Exception as error:  # whatever the reader's code raises
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "exercises" in frame.filename][-1:]
        line = f", line {where[0].lineno} of {Path(where[0].filename).name}" if where else ""
        sys.exit(f"{name} stopped with {type(error).__name__}: {error}{line}.")
    print(f"{name} is right.")


if __name__ == "__main__":
    main()
