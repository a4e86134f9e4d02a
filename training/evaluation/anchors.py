"""What others publish for the benchmarks that were scored, beside our own figures: accuracy, words seen, parameters.

`benchmark_files/anchors.json` has the figures, each with the page or file that it was read in; where that is a list of
results, the accuracy of BLiMP is the mean of its 67 paradigms. The first source has the figures, the others say how
much text the model saw.
"""

import json
from pathlib import Path
from typing import Any

from training.evaluation.figures import number

ANCHORS = Path(__file__).parent / "benchmark_files" / "anchors.json"
ABOUT = (
    "Figures of others are those that they publish, scored without examples, most with the same harness; words are "
    "those of the text, or tokens where only these are known; × 0.5 is half a pass through it."
)


def find_anchors(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the published figures of the tasks that were scored, without models that have none."""
    tasks = scored(models)
    found = json.loads(ANCHORS.read_text(encoding="utf-8")) if tasks else []
    for anchor in found:
        anchor["accuracy"] = {task: value for task, value in anchor["accuracy"].items() if task in tasks}
    return [anchor for anchor in found if anchor["accuracy"]]


def scored(models: dict[str, Any]) -> list[str]:
    """Return the tasks of which some model has an accuracy."""
    every = [(task, scores) for measured in models.values() for task, scores in measured.get("tasks", {}).items()]
    return list(dict.fromkeys(task for task, scores in every if "acc" in scores))


def anchor_rows(models: dict[str, Any], anchors: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table, ours first, without sources; none if nobody publishes such figures."""
    if not anchors:
        return [], []
    tasks = [task for task in scored(models) if any(task in anchor["accuracy"] for anchor in anchors)]
    header = ["", "text seen", "parameters", *(f"{task}, acc" for task in tasks)]
    rows = [
        [name, seen(measured.get("seen")), number(measured["parameters"])]
        + [accuracy(measured.get("tasks", {}).get(task, {}).get("acc")) for task in tasks]
        for name, measured in models.items()
    ]
    for anchor in anchors:
        figures = [anchor["accuracy"].get(task) for task in tasks]
        cells = ["" if value is None else f"{value:.1f} %" for value in figures]
        rows.append([anchor["model"], anchor.get("seen", ""), anchor.get("parameters", ""), *cells])
    return header, rows


def accuracy(found: dict[str, Any] | None) -> str:
    """Write an accuracy in percent with its interval."""
    if found is None:
        return ""
    low, high = found.get("low"), found.get("high")
    inside = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * found['value']:.1f} %{inside}"


def sources(anchors: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the addresses of where the figures were read, by the models that they are of."""
    found: dict[tuple[str, ...], list[str]] = {}
    for anchor in anchors:
        found.setdefault(tuple(anchor["source"]), []).append(anchor["model"])
    return {"; ".join(models): list(addresses) for addresses, models in found.items()}


def seen(found: dict[str, Any] | None) -> str:
    """Write how much text a model was trained on, and in how many passes."""
    return f"{number(found['words'])} words × {found['passes']:.2g}" if found else ""


def text_seen(record: dict[str, Any], data_sha256: str, training_text: dict[str, Any]) -> dict[str, Any] | None:
    """Return words and passes of a model that was pretrained on this text alone, else None.

    Args:
        record: Of the stage that made the model.
        training_text: Its `tokens` and `words`.
    """
    if record.get("stage") != "pretrain" or record["config"].get("init_from"):
        return None
    tokens = record.get("metrics", {}).get("tokens")
    if tokens is None or record["inputs"].get("data", {}).get("sha256") != data_sha256:
        return None
    return {"words": training_text["words"], "passes": tokens / training_text["tokens"]}
