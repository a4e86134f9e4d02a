"""The scores of a task: from the harness's rows to accuracies with intervals, and to the lines of a report."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.evaluation.figures import figure
from training.evaluation.statistics import Z_95, bootstrap_ratio, rate, wilson
from training.stage.record import TASK

Scores = dict[str, Any]


def score_task(scores: Scores, samples: list[Scores]) -> Scores:
    """Return the metrics without the filter in their names, `acc,none` for example, with their intervals.

    Args:
        scores: The harness's metrics of a task or a group of tasks.
        samples: The harness's rows of it.
    """
    if samples and {"UID", "field"} <= samples[0]["doc"].keys():
        return {"rows": len(samples)} | _by_paradigm(samples)
    found: Scores = {"rows": len(samples)}
    for key, value in scores.items():
        name = key.partition(",")[0]
        if not isinstance(value, int | float) or name in ("sample_len", "sample_count"):
            continue
        found[name] = {"value": value} | _spread(name, value, [row.get(name) for row in samples])
        choices = [len(row["resps"]) for row in samples]
        if name in ("acc", "acc_norm") and choices and min(choices) > 1:
            found[name]["chance"] = sum(1 / count for count in choices) / len(choices)
    return found


def _spread(name: str, value: float, outcomes: list[Any]) -> Scores:
    """Return standard error and 95 % interval of a metric from its rows, None where it is no mean of theirs.

    The harness has errors of perplexities from processes that it forks, which a program with threads must not do.
    """
    if name == "bits_per_byte":  # rows of log-likelihood and bytes
        nats, num_bytes = np.array(outcomes).T
        low, high = bootstrap_ratio(-nats / math.log(2), num_bytes)
        return {"stderr": (high - low) / (2 * Z_95), "low": low, "high": high}
    if len(outcomes) < 2 or not all(isinstance(one, int | float) for one in outcomes):
        return {"stderr": None, "low": None, "high": None}
    stderr = statistics.stdev(outcomes) / math.sqrt(len(outcomes))
    if name == "perplexity":  # of the mean log-likelihood
        low, high = (math.exp(-statistics.fmean(outcomes) + sign * Z_95 * stderr) for sign in (-1, 1))
        return {"stderr": value * stderr, "low": low, "high": high}
    if all(one in (0, 1) for one in outcomes):
        low, high = wilson(sum(outcomes), len(outcomes))
        return {"stderr": stderr, "low": low, "high": high}
    if not math.isclose(value, statistics.fmean(outcomes), rel_tol=1e-6, abs_tol=1e-9):
        return {"stderr": None, "low": None, "high": None}
    return {"stderr": stderr, "low": value - Z_95 * stderr, "high": value + Z_95 * stderr}


def _by_paradigm(samples: list[Scores]) -> Scores:
    """Return BLiMP's accuracy: the mean of its paradigms, as of each field's.

    A tie is wrong here; the harness's own score, which takes the first of equal sentences, counts it as right.
    The interval is Wilson's for as many rows, which is a little too wide for a mean of paradigms, never too narrow.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for row in samples:
        good, bad = (likelihood for likelihood, _ in row["filtered_resps"])
        field = row["doc"]["field"].replace("_", "-").replace("/", "-")
        right.setdefault(field, {}).setdefault(row["doc"]["UID"], []).append(good > bad)
    paradigms = {name: outcomes for field in sorted(right) for name, outcomes in sorted(right[field].items())}
    every = {name: _as_metric(rate(sum(one), len(one))) for name, one in paradigms.items()}

    def mean(names: Sequence[str]) -> Scores:
        rows = sum(len(paradigms[name]) for name in names)
        value = sum(every[name]["value"] for name in names) / len(names)
        low, high = wilson(value * rows, rows)
        return {"value": value, "stderr": (high - low) / (2 * Z_95), "low": low, "high": high, "chance": 0.5}

    fields = {field: mean(list(right[field])) for field in sorted(right)}
    return {"acc": mean(list(every)), "fields": fields, "paradigms": every}


def _as_metric(found: Scores) -> Scores:
    return {"value": found["rate"], "low": found["low"], "high": found["high"], "rows": found["n"], "chance": 0.5}


def metrics_of(scores: Scores) -> dict[str, Scores]:
    """Return the metrics of a task by name, of BLiMP its fields after the whole."""
    own = {name: score for name, score in scores.items() if isinstance(score, dict) and "value" in score}
    return own | {f"acc, {name}": score for name, score in scores.get("fields", {}).items()}


def task_score(found: dict[str, Any] | None) -> str:
    """Write a task's metric with its interval, and what chance gives where the interval does not lie above it."""
    if found is None:
        return ""
    value: float = found["value"]
    low, high, chance = (found.get(key) for key in ("low", "high", "chance"))  # earlier results have none
    if low is None or high is None:
        return figure(value)
    if chance is None:
        return f"{figure(value)} ({figure(low)} to {figure(high)})"
    return _share(value, low, high, chance)


def _share(value: float, low: float, high: float, chance: float | None) -> str:
    named = "" if chance is None or low > chance else f"; chance {100 * chance:.1f}"
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}{named})"


def question_rows(models: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the cells of a report for each kind of question, greedy and sampled."""
    rows = {}
    asked = [m.get("questions", {"greedy": {}, "sampled": {}}) for m in models]
    for kind in dict.fromkeys(kind for one in asked for kind in one["greedy"]):
        for how, ending in (("greedy", ""), ("sampled", ", sampled")):
            found = [one[how].get(kind) for one in asked]
            rows[f"Questions: {kind}{ending}"] = [
                _share(one["rate"], one["low"], one["high"], one["chance"]) if one else "" for one in found
            ]
    return rows


def paradigm_rows(models: dict[str, Any]) -> list[list[str]]:
    """Return a row for each of BLiMP's paradigms, none if it was not measured."""
    found = [m.get("tasks", {}).get("blimp", {}).get("paradigms", {}) for m in models.values()]
    names = dict.fromkeys(name for one in found for name in one)
    return [[name, *(task_score(one.get(name)) for one in found)] for name in names]


def task_procedure(tasks: dict[str, Any]) -> list[str]:
    """Return in sentences how the tasks were scored."""
    rows = ", ".join(f"{name} {scores['rows']:,}" for name, scores in tasks.items())
    lines = [f"- Tasks: lm-evaluation-harness, its prompts without examples; rows: {rows}."]
    if paradigms := tasks.get("blimp", {}).get("paradigms"):
        lines.append(
            "- BLiMP: which of two sentences is likelier after the token that begins a text; the mean of "
            f"{len(paradigms)} of 67 paradigms. A tie counts as wrong, which the harness counts as right."
        )
    return lines


def task_curves(log: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Return the keys of the benchmarks that were scored while a model trained, and their names."""
    return tuple(
        (key, key.removeprefix(TASK))
        for key in dict.fromkeys(key for line in log for key in line)
        if key.startswith(TASK)
    )
