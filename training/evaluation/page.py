"""One HTML file that shows a run, or several side by side: results, curves, samples, data, time and settings.

It opens from the disk: no network, no script, light and dark by the reader's system. Everything in it comes from the
`stage.json`, `metrics.jsonl` and `results.json` of the stages; text of models and data is escaped.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.anchors import ABOUT, anchor_rows, sources
from training.evaluation.charts import Series, line_chart
from training.evaluation.markdown import (
    LOSSES,
    MISSING,
    PAIRED_HEADER,
    REWARDS,
    missing,
    paired_rows,
    part_rows,
    procedure,
    read_metrics,
    result_rows,
)
from training.evaluation.samples import (
    ABOUT_TEXT_SAMPLES,
    START,
    agreement,
    agreement_rows,
    by_prompt,
    how_written,
)
from training.evaluation.task_scores import paradigm_rows, task_curves
from training.stage.files import read_json
from training.stage.page import render
from training.stage.record import METRICS, MODELS

STAGES = ("tokenizer", "data", "chat", *MODELS.values(), "eval", "release")
PANELS = (  # title, and (key in metrics.jsonl, label) of each line
    ("Loss", LOSSES),
    ("Bits per byte of held-out text", (("val_bpb", "held-out"),)),
    ("Tokens predicted right", (("mean_token_accuracy", "training"),)),
    ("Reward margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held-out"))),
    ("Pairs ranked right", (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held-out"))),
    ("Log-probability of an answer, nats", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
    ("Reward of the checkers", REWARDS),
    ("KL to the reference, nats a token", (("kl", "training"),)),
    ("Length of the answers, tokens", (("length/chosen", "chosen"), ("length/rejected", "rejected"),
                                       ("completions/mean_length", "own answers"))),
    ("Gradient norm", (("grad_norm", "training"),)),
)  # fmt: skip
CORE_WATTS, ACCELERATOR_WATTS = 10, 400  # assumed, of a core and of an accelerator under load


def write_page(runs: Sequence[Path], path: Path) -> Path:
    """Write the page of one run, or of several to compare, and return its path."""
    names = run_names(runs)
    shown = [one_run(run, name, f"{name}: " if len(runs) > 1 else "") for run, name in zip(runs, names, strict=True)]
    page = render(
        "evaluation/page.html",
        title=" and ".join(names),
        runs=shown,
        results=results(runs, names),
        curves=curves(runs, names),
        times=times(runs, names),
        core_watts=CORE_WATTS,
        accelerator_watts=ACCELERATOR_WATTS,
    )
    path.write_text(page, encoding="utf-8")
    return path


def one_run(run: Path, name: str, label: str) -> dict[str, Any]:
    """Return what the page shows of each run by itself."""
    found = records(run)
    return {
        "name": name,
        "label": label,
        "facts": facts(run),
        "samples": evaluation(run).get("samples", []),
        "written": written(evaluation(run).get("text_samples")),
        "text": text_rows(found.get("data", {})),
        "checks": {
            stage: [[line["what"], line["found"], line["level"], line["note"]] for line in record["data"]]
            for stage, record in found.items()
            if "data" in record
        },
        "settings": settings(found),
    }


def written(found: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the base wrote by itself, with what of it stands in the training text."""
    if not found:
        return {}
    header, rows = agreement_rows(found)
    prompts = [
        (prompt or START, [(one["temperature"], one["text"], agreement(one)) for one in some])
        for prompt, some in by_prompt(found).items()
    ]
    about = [ABOUT_TEXT_SAMPLES, how_written(found)]
    return {"model": found["model"], "header": header, "rows": rows, "about": about, "prompts": prompts}


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the runs' folder names, with their parents' where these do not tell them apart."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Return the record of each stage that the run has."""
    found = {name: read_json(run / name / "stage.json") for name in STAGES}
    own = read_json(run / "stage.json")  # a stage that stands alone, for example an evaluation
    found |= {own["stage"]: own} if own else {}
    return {name: record for name, record in found.items() if record}


def evaluation(run: Path) -> dict[str, Any]:
    """Return the results of the run's evaluation, or of an evaluation that stands alone."""
    return read_json(run / "eval" / "results.json") or read_json(run / "results.json")


# ---- sections ----


def facts(run: Path) -> list[str]:
    """Return what is said first: the run's stages, model size, time and commit."""
    found, models = records(run), evaluation(run).get("models", {})
    first = next(iter(found.values()), {})
    size = [f"{next(iter(models.values()))['parameters']:,} parameters"] if models else []
    time = duration(sum(record.get("seconds", 0) for record in found.values()))
    return [", ".join(found) or "no stage", *size, time, f"commit {(first.get('commit') or 'unknown')[:12]}"]


def results(runs: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """Return the tables of results; of several runs with all their models side by side. Empty if there are none."""
    every = {name: evaluation(run) for run, name in zip(runs, names, strict=True)}
    every = {name: found for name, found in every.items() if found}
    if not every:
        return {}
    models = {
        f"{name}: {model}" if len(runs) > 1 else model: measured
        for name, found in every.items()
        for model, measured in found["models"].items()
    }
    told = all("stories" in measured for measured in models.values())
    lines = procedure(next(iter(every.values()))).replace("`", "").splitlines()
    return {
        "models": list(models),
        "rows": [[title, *row] for title, row in result_rows(models).items()],
        "parts": part_rows(models) if told else [],
        "paradigms": paradigm_rows(models),
        "published": published(models, [found.get("anchors", []) for found in every.values()]),
        "runs": [
            {
                "label": f"{name}: " if len(runs) > 1 else "",
                "missing": missing(found["models"]),
                "changed": paired_rows(found),
            }
            for name, found in every.items()
        ],
        "about_missing": MISSING,
        "changed_header": PAIRED_HEADER,
        "measured": [line.removeprefix("- ") for line in lines],
    }


def published(models: dict[str, Any], found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the scores of these models beside those that others publish, empty if there are none."""
    anchors: dict[str, dict[str, Any]] = {}
    for anchor in itertools.chain.from_iterable(found):
        known = anchors.setdefault(anchor["model"], anchor)
        known["accuracy"] |= anchor["accuracy"]
    header, rows = anchor_rows(models, list(anchors.values()))
    return {"header": header, "rows": rows, "about": ABOUT, "sources": sources(list(anchors.values()))} if rows else {}


def curves(runs: Sequence[Path], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the charts of every stage; a line a run where several are compared."""
    found = {}
    for stage in STAGES:
        logs = {name: read_metrics(run / stage / METRICS) for run, name in zip(runs, names, strict=True)}
        shown = [entry for entry in PANELS if stage != "grpo" or entry[1] != LOSSES]
        shown.append(("Benchmarks", task_curves([line for log in logs.values() for line in log])))
        found[stage] = [chart for title, keys in shown if (chart := panel(title, keys, logs))]
    return {stage: charts for stage, charts in found.items() if charts}


def panel(title: str, keys: Sequence[tuple[str, str]], logs: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Return a chart, or none where no run logged any of its figures."""
    series: list[Series] = []
    for name, log in logs.items():
        for key, label in keys:
            points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
            if points:
                series.append((f"{name}: {label}" if len(logs) > 1 else label, points))
    return line_chart(title, series)


def text_rows(record: dict[str, Any]) -> list[list[str]]:
    """Return the size of the pretraining text, a row a split."""
    metrics = record.get("metrics", {})
    keys = ("documents", "tokens", "bytes")
    return [[split, *(f"{metrics[split][key]:,}" for key in keys)] for split in ("train", "val") if split in metrics]


def times(runs: Sequence[Path], names: Sequence[str]) -> list[list[str]]:
    """Return time and an estimate of the energy of each stage."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        total_seconds = total_watt_hours = 0.0
        for stage, record in records(run).items():
            seconds, power = record.get("seconds", 0.0), watts(record)
            total_seconds, total_watt_hours = total_seconds + seconds, total_watt_hours + seconds * power / 3600
            label = f"{name}: {stage}" if len(runs) > 1 else stage
            rows.append([label, duration(seconds), f"{power} W", f"{seconds * power / 3600:.2f} Wh"])
        label = f"{name}: all" if len(runs) > 1 else "all"
        rows.append([label, duration(total_seconds), "", f"{total_watt_hours:.2f} Wh"])
    return rows


def watts(record: dict[str, Any]) -> int:
    """Return the power that is assumed for the machine of a stage."""
    machine = record.get("machine", {})
    return CORE_WATTS * (machine.get("cpus") or 1) + ACCELERATOR_WATTS * len(machine.get("accelerators", []))


def settings(found: dict[str, dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Return the configuration of each stage, and the environment of the last one."""
    shown, environment = {}, {}
    for stage, record in found.items():
        inputs = {f"input {key}": entry["sha256"][:16] for key, entry in record["inputs"].items()}
        shown[stage] = record["config"] | inputs
        environment = {"commit": record.get("commit")} | record.get("machine", {}) | record.get("versions", {})
    shown |= {"environment": environment} if environment else {}
    return {name: [[key, text_of(value)] for key, value in values.items()] for name, values in shown.items()}


def text_of(value: Any) -> str:
    """Write a setting's value."""
    return value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float) -> str:
    """Write a time in two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
