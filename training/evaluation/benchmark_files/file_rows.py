"""Rows of benchmarks from the data sets' own files, as published on the Hub, at their origin or in llm-foundry.

The YAML files beside this one name its functions. Of each task the split is read that its published scores are of.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from training.corpus.readers.tables import read_table

Row = dict[str, Any]
FILES = {  # the files of a task, anywhere in the folder: the first of these that is there; and where they are had
    "blimp": (
        ("blimp/*.jsonl", "blimp/data/*.jsonl", "blimp/*/train-*.parquet"),
        "the folder `data` of github.com/alexwarstadt/blimp, or the Hub's data set nyu-mll/blimp",
    ),
    "lambada_openai": (
        ("lambada_openai.jsonl", "lambada_test.jsonl", "lambada_test_en.jsonl"),
        "the Hub's data set EleutherAI/lambada_openai",
    ),
    "arc_easy": (
        ("arc_easy.jsonl", "ARC-Easy-Test.jsonl", "ARC-Easy/test-*.parquet"),
        "the Hub's data set allenai/ai2_arc",
    ),
    "piqa": (
        ("piqa.jsonl", "piqa/**/valid.jsonl", "piqa/**/validation*.parquet"),
        "yonatanbisk.com/piqa/data (valid.jsonl and valid-labels.lst), or the Hub's data set baber/piqa",
    ),
    "hellaswag": (
        ("hellaswag.jsonl", "hellaswag_val.jsonl", "hellaswag/**/validation-*.parquet"),
        "the folder `data` of github.com/rowanz/hellaswag, or the Hub's data set Rowan/hellaswag",
    ),
}


def find_files(task: str, folder: str) -> list[Path]:
    """Return the files of a benchmark.

    Raises:
        ValueError: The folder has none.
    """
    patterns, source = FILES[task]
    for pattern in patterns:
        if found := sorted(Path(folder).rglob(pattern)):
            return found
    wanted = f"{', '.join(patterns[:-1])} or {patterns[-1]}"
    raise ValueError(f"{folder} has no file of the task {task} ({wanted}); {source} has it.")


def read(task: str, convert: Callable[[Row], Row], task_data: str, task_rows: int) -> dict[str, Dataset]:
    """Return the rows of each file of a benchmark, of each no more than `task_rows` if that is not 0.

    Raises:
        ValueError: A file is missing, cannot be read or has no rows, or a row is of no layout that is known.
    """
    rows: list[Row] = []
    for path in find_files(task, task_data):
        first = len(rows)
        labels = path.with_name("valid-labels.lst")
        answers = labels.read_text(encoding="utf-8").split() if path.name == "valid.jsonl" and labels.exists() else []
        for number, (where, row) in enumerate(read_table(str(path))):
            if task_rows and number == task_rows:
                break
            try:
                rows.append(convert(row | {"label": answers[number]} if answers else row))
            except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{where}: no row of {task} as it is published ({error!r}); take {FILES[task][1]} as it is."
                ) from None
        if len(rows) == first:
            raise ValueError(f"{path} has no rows; take {FILES[task][1]} as it is.")
    return {"test": Dataset.from_list(rows)}


def blimp(task_data: str, task_rows: int, **kwargs: Any) -> dict[str, Dataset]:
    """Pairs of sentences, the English one first."""
    return read("blimp", _pair, task_data, task_rows)


def _pair(row: Row) -> Row:
    choices = [row["sentence_good"], row["sentence_bad"]]
    return {"query": "", "choices": choices, "gold": 0, "UID": row["UID"], "field": row["field"]}


def lambada_openai(task_data: str, task_rows: int, **kwargs: Any) -> dict[str, Dataset]:
    """Passages and their last words."""
    return read("lambada_openai", _passage, task_data, task_rows)


def _passage(row: Row) -> Row:
    if "text" not in row:
        return {"context": row["context"], "continuation": " " + row["continuation"].strip(" ")}
    context, _, word = row["text"].rpartition(" ")
    return {"context": context, "continuation": f" {word}"}


def arc_easy(task_data: str, task_rows: int, **kwargs: Any) -> dict[str, Dataset]:
    """Questions with three to five answers."""
    return read("arc_easy", _question, task_data, task_rows)


def _question(row: Row) -> Row:
    if "query" in row:
        return _prepared(row, "\nAnswer:")
    if "choices" in row:
        question, labels, answers = row["question"], row["choices"]["label"], row["choices"]["text"]
    else:  # as AI2 published it
        question, choices = row["question"]["stem"], row["question"]["choices"]
        labels, answers = ([choice[key] for choice in choices] for key in ("label", "text"))
    gold = list(labels).index(row["answerKey"])
    return {"query": f"Question: {question}\nAnswer:", "choices": list(answers), "gold": gold}


def piqa(task_data: str, task_rows: int, **kwargs: Any) -> dict[str, Dataset]:
    """Goals with two ways to reach them."""
    return read("piqa", _goal, task_data, task_rows)


def _goal(row: Row) -> Row:
    if "query" in row:
        return _prepared(row, "\nAnswer:")
    choices = [row["sol1"], row["sol2"]]
    return {"query": f"Question: {row['goal']}\nAnswer:", "choices": choices, "gold": int(row["label"])}


def hellaswag(task_data: str, task_rows: int, **kwargs: Any) -> dict[str, Dataset]:
    """Beginnings with four endings."""
    return read("hellaswag", _beginning, task_data, task_rows)


def _beginning(row: Row) -> Row:
    if "query" in row:
        return _prepared(row, "")
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = [_without_marks(ending) for ending in row["endings"]]
    return {"query": _without_marks(query), "choices": endings, "gold": int(row["label"])}


def _without_marks(text: str) -> str:
    """Take WikiHow's marks away, as the harness's own task does."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _prepared(row: Row, ending: str) -> Row:
    """Return a row of llm-foundry, whose prompts lack the ending that the harness's have."""
    return {"query": row["query"].rstrip("\n") + ending, "choices": list(row["choices"]), "gold": int(row["gold"])}
