"""The scores of a task: from the harness's rows to accuracies with intervals, and to the lines of a report."""

from collections.abc import Sequence
from typing import Any

from training.evaluation.statistics import Z_95, rate, wilson
from training.stage.record import TASK

Scores = dict[str, Any]


def score_task(scores: Scores, samples: list[Scores]) -> Scores:
    """Return the metrics without the filter in their names, `acc,none` for example; an accuracy has Wilson's interval.

    Args:
        scores: The harness's metrics of a task or a group of tasks.
        samples: The harness's rows of it.
    """
    if samples and {"UID", "field"} <= samples[0]["doc"].keys():
        return {"rows": len(samples)} | _by_paradigm(samples)
    values = {key.partition(",")[0]: value for key, value in scores.items() if isinstance(value, int | float)}
    found: Scores = {"rows": len(samples)}
    for name in values:
        if name.endswith("_stderr") or name in ("sample_len", "sample_count"):
            continue
        outcomes = [row.get(name) for row in samples]
        value, stderr = values[name], values.get(f"{name}_stderr")
        if outcomes and all(one in (0, 1) for one in outcomes):
            low, high = wilson(sum(outcomes), len(outcomes))
        else:
            low, high = (None, None) if stderr is None else (max(0.0, value - Z_95 * stderr), value + Z_95 * stderr)
        found[name] = {"value": value, "stderr": stderr, "low": low, "high": high}
        choices = [len(row["resps"]) for row in samples]
        if name in ("acc", "acc_norm") and choices and min(choices) > 1:
            found[name]["chance"] = sum(1 / count for count in choices) / len(choices)
    return found


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
    value, low, high = found["value"], found.get("low"), found.get("high")
    if low is None:
        return f"{value:.4f}"
    chance = found.get("chance")
    if chance is None:
        return f"{value:.4f} ({low:.4f} to {high:.4f})"
    named = "" if low > chance else f"; chance {100 * chance:.1f}"
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}{named})"


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
