"""GRPO on the user's own: prompts from a file, and reward functions from the user's own code.

A function is called as TRL calls it (https://huggingface.co/docs/trl/grpo_trainer), with the columns of the file
beside prompts and completions, and is named `module:function`. Only the settings name it: no data set and no model
brings code.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_scratch.tokenizer import Message, encode_prompt
from training.chat.formats import read_prompt, short
from training.chat.rows import read_rows
from training.stage.config import suggest

Reward = Callable[..., Any]
ROW = "row"  # column of the trainer's data: which row of the file a prompt is
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")  # by TRL


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, as messages, and what else its rows hold."""

    messages: list[list[Message]]
    columns: dict[str, list[Any]]  # by name, a value for each prompt
    are_text: bool  # in the file, and then in what a function gets as prompts and completions

    def dataset(self, places: int, seed: int) -> Dataset:
        """Return a prompt for each place of a run: all of them in random order, and again in another one."""
        rng, count = np.random.default_rng(seed), len(self.messages)
        order = np.concatenate([rng.permutation(count) for _ in range(math.ceil(places / count))])
        rows = [{"prompt": messages, ROW: row} for row, messages in enumerate(self.messages)]
        return Dataset.from_list(rows).select(order[:places])

    def take(self, rows: Sequence[int], completions: Sequence[Any]) -> dict[str, Any]:
        """Return what a reward function gets of these rows and their answers: text where the file has text."""
        found: dict[str, Any] = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        asked = [self.messages[row] for row in rows]
        if not self.are_text:
            return found | {"prompts": asked}
        answers = [answer[0].get("content") or "" for answer in completions]
        return found | {"prompts": [messages[-1]["content"] for messages in asked], "completions": answers}


# ---- prompts ----


def read_prompts(path: str, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> Prompts:
    """Return the prompts of a file or of a data set on the Hub.

    Args:
        longest: Tokens that a prompt may have.

    Raises:
        ValueError: There is no such file, it is empty, or a row's prompt is none, is too long or is refused by the
            chat template; or a column has a name that a reward function gets from TRL.
    """
    found = list(read_rows(path))
    if not found:
        raise ValueError(f'{path} is empty; expected rows like {{"prompt": "..."}}.')
    messages = [read_prompt(row, where) for where, row in found]
    for (where, _), prompt in zip(found, messages, strict=True):
        try:
            tokens = len(encode_prompt(tokenizer, prompt))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if longest is not None and tokens > longest:
            raise ValueError(
                f"{where}: the prompt has {tokens} tokens, but before an answer of max_new_tokens the model has room "
                f"for {max(0, longest)}; lower max_new_tokens, or leave the row out."
            )
    rows = [row for _, row in found]
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    if taken := sorted(names.keys() & set(GIVEN)):
        raise ValueError(f"{path}: the column {taken[0]} has the name of what a reward gets anyway; rename it.")
    are_text = all(isinstance(row["prompt"], str) for row in rows)
    return Prompts(messages, {name: [row.get(name) for row in rows] for name in names}, are_text)


# ---- reward functions ----


def load_rewards(names: Sequence[str]) -> dict[str, Reward]:
    """Return the functions that `module:function` names, by function; a module is looked for in the working directory.

    Raises:
        ValueError: Not of that form, no such module or function, or two functions of one name.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, and not every launcher
    found: dict[str, Reward] = {}
    for name in names:
        module, _, function = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), function)):
            raise ValueError(
                f"reward {name!r} is not module:function; `rewards:brief` is the function brief of rewards.py in the "
                "working directory."
            )
        if function in found:
            raise ValueError(f"two rewards are called {function}, which the log cannot tell apart; rename one.")
        found[function] = _find(name, module, function)
    return found


def _find(name: str, module: str, function: str) -> Reward:
    try:
        content = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"reward {name}: the module needs {error.name}, which is not installed.") from None
        raise ValueError(
            f"reward {name}: there is no module {module} in {os.getcwd()}, nor an installed one; check the name, or "
            "run from the folder that holds it."
        ) from None
    if function not in content:
        callables = [key for key, value in content.items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"reward {name}: the module has no {function}{suggest(function, callables)}")
    if not callable(content[function]):
        raise ValueError(f"reward {name} is no function but {short(content[function])}.")
    reward: Reward = content[function]
    return reward


def source_files(names: Sequence[str]) -> Iterator[str]:
    """Yield the files of the functions' modules that lie in the working directory: another content is another run."""
    for name in names:
        file = Path(getattr(sys.modules[name.partition(":")[0]], "__file__", None) or "")
        if file.is_file() and file.resolve().is_relative_to(Path.cwd().resolve()):
            yield str(file.resolve().relative_to(Path.cwd().resolve()))


def as_reward(name: str, function: Reward, prompts: Prompts | None, columns: Sequence[str]) -> Reward:
    """Return a function for TRL to call: it gives the user's own what it asks for, and looks at what comes back.

    Args:
        prompts: The user's own, whose columns the function gets; None where they are the trainer's.
        columns: Their names.

    Raises:
        ValueError: The function does not take what it is given; when called, that a reward is missing or no number.
    """
    names = [*GIVEN, *columns]
    try:
        inspect.signature(function).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ValueError(
            f"reward {name} cannot be called with {', '.join(names)} ({error}); end its arguments with **kwargs, and "
            "let it ask for columns that the prompts have."
        ) from None

    def reward(**given: Any) -> list[float | None]:
        if prompts:
            given |= prompts.take(given.pop(ROW), given["completions"])
        return _checked(name, function(**given), given["completions"])

    reward.__name__ = name  # by which TRL logs it
    return reward


def _checked(name: str, rewards: Any, completions: Sequence[Any]) -> list[float | None]:
    """Return a finite number for each answer; None, as in TRL, where a reward does not apply."""
    try:
        numbers = [None if one is None else float(one) for one in rewards]
    except (TypeError, ValueError):
        raise ValueError(f"reward {name} returned {short(rewards)} and not a list of numbers.") from None
    if len(numbers) != len(completions):
        raise ValueError(
            f"reward {name} returned {len(numbers)} rewards for {len(completions)} answers; return one for each."
        )
    for number, answer in zip(numbers, completions, strict=True):
        if number is not None and not math.isfinite(number):
            raise ValueError(
                f"reward {name} is {number} for the answer {short(answer)}; return a finite number, or None where the "
                "reward does not apply."
            )
    return numbers
