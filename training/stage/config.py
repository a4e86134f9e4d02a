"""The settings of a stage: from YAML and the command line into a dataclass, with every mistake in one sentence."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Config = TypeVar("Config")


@dataclass(frozen=True)
class SameRun:
    """Marks a setting, as `Annotated[int, SameRun()]`: whatever its value, the run is the same and goes on.

    `unless`: settings that, if set, make it count after all.
    """

    unless: tuple[str, ...] = ()


def parse_config(config_class: type[Config], argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read `--config FILE.yaml` and `--name value` options into the dataclass; the command line wins.

    Raises:
        ValueError: A key that the dataclass does not have, a value of the wrong type, or no such file.
    """
    from transformers import HfArgumentParser  # the processes that prepare data import this file too

    argv = list(sys.argv[1:] if argv is None else argv)
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config", type=Path)
    given, argv = recipe.parse_known_args(argv)
    settings = _read_yaml(given.config, get_type_hints(config_class)) if given.config else {}
    parser = HfArgumentParser([config_class], description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of these settings; options on the command line win.")
    known = [f.name for f in fields(config_class)]  # type: ignore[arg-type]
    for option in argv:
        name = option.removeprefix("--").split("=")[0]
        if option.startswith("--") and name not in {*known, "help"} and not name.startswith("no_"):
            raise ValueError(f"option --{name} does not exist{suggest(name, known)}")
    parser.set_defaults(**settings)
    for action in parser._actions:
        action.required = action.required and action.dest not in settings
    config, *_ = parser.parse_args_into_dataclasses(argv)
    return config


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file; the parser takes them as they stand, as defaults, so they are checked here."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read ({error.strerror}); check the path.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} must hold `key: value` lines.")
    for key, value in content.items():
        if key not in kinds:
            raise ValueError(f"{path}: {key!r} is not a setting of this stage{suggest(str(key), list(kinds))}")
        if not is_a(kinds[key], value):
            if get_origin(kinds[key]) is Literal:
                raise ValueError(
                    f"{path}: {key}: {value!r} does not exist{suggest(str(value), [*get_args(kinds[key])])}"
                )
            wanted = kinds[key].__name__ if isinstance(kinds[key], type) else str(kinds[key])
            raise ValueError(f"{path}: {key}: {value!r} is no {wanted}.")
    return content


def is_a(kind: Any, value: Any) -> bool:
    """Whether a value from YAML is of a field's type; 6e-4, which YAML reads as text, is a number."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(is_a(part, value) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(is_a(parts[0], item) for item in value)
    if kind is float and not isinstance(value, bool):
        try:
            return isinstance(float(value), float)
        except (TypeError, ValueError):
            return False
    if kind is int and isinstance(value, bool):
        return False
    kind = origin or kind
    return isinstance(value, kind)


def suggest(name: str, known: list[str]) -> str:
    """Return the end of a sentence on a name that is not known: the nearest one that is, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}."
