"""One HTML file that shows a run, or several side by side: results, curves, samples, data, time and settings.

It opens from the disk: no network, no script, light and dark by the reader's system. Everything in it comes from the
`stage.json`, `metrics.jsonl` and `results.json` of the stages; text of models and data is escaped.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from training.evaluation.task_scores import paradigm_rows, task_curves
from training.stage.files import read_json
from training.stage.record import METRICS, MODELS

STAGES = ("tokenizer", "data", *MODELS.values(), "eval", "release")
CSS = (Path(__file__).parent.parent / "report_page.css").read_text(encoding="utf-8")
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
    title = " and ".join(names)
    parts = [f"<h1>{text(title)}</h1>", *summary(runs, names), *results(runs, names), *curves(runs, names)]
    for run, name in zip(runs, names, strict=True):
        label = f"{name}: " if len(runs) > 1 else ""
        parts += [*samples(run, label), *data_tables(run, label)]
    parts += [*times(runs, names), *settings(runs, names)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{text(title)}</title><style>{CSS}</style></head><body><main>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path


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


def summary(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return a line about each run: its stages, model size, time and commit."""
    lines = []
    for run, name in zip(runs, names, strict=True):
        found = records(run)
        seconds = sum(record.get("seconds", 0) for record in found.values())
        first = next(iter(found.values()), {})
        facts = [
            ", ".join(found) or "no stage",
            duration(seconds),
            f"commit {(first.get('commit') or 'unknown')[:12]}",
        ]
        models = evaluation(run).get("models", {})
        if models:
            facts.insert(1, f"{next(iter(models.values()))['parameters']:,} parameters")
        label = f"<b>{text(name)}</b> " if len(runs) > 1 else ""
        lines.append(f"<p class='lead'>{label}{text(' · '.join(facts))}</p>")
    return lines


def results(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the tables of results; of several runs with all their models side by side."""
    every = {name: evaluation(run) for run, name in zip(runs, names, strict=True)}
    every = {name: found for name, found in every.items() if found}
    if not every:
        return ["<p>Not evaluated yet: run <code>python -m training.eval_model</code>.</p>"]
    models = {
        f"{name}: {model}" if len(runs) > 1 else model: measured
        for name, found in every.items()
        for model, measured in found["models"].items()
    }
    parts = ["<h2>Results</h2>", table(["", *models], [[title, *row] for title, row in result_rows(models).items()])]
    if all("stories" in measured for measured in models.values()):
        parts += ["<h3>What the answers got right</h3>", table(["", *models], part_rows(models))]
    if paradigms := paradigm_rows(models):
        parts.append(f"<details><summary>BLiMP by paradigm</summary>{table(['', *models], paradigms)}</details>")
    for name, found in every.items():
        label = f"{name}: " if len(runs) > 1 else ""
        if lacking := missing(found["models"]):
            items = "".join(f"<li>{text(line)}</li>" for line in lacking)
            parts.append(f"<h3>{text(label)}What is missing</h3><ul>{items}</ul><p class='note'>{text(MISSING)}</p>")
        if rows := paired_rows(found):
            parts += [f"<h3>{text(label)}What each stage changed</h3>", table(PAIRED_HEADER, rows)]
    steps = procedure(next(iter(every.values()))).replace("`", "").splitlines()
    items = "".join(f"<li>{text(line.removeprefix('- '))}</li>" for line in steps)
    return [*parts, f"<details><summary>How the numbers were measured</summary><ul>{items}</ul></details>"]


def curves(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the charts of every stage; a line a run where several are compared."""
    parts = []
    for stage in STAGES:
        logs = {name: read_metrics(run / stage / METRICS) for run, name in zip(runs, names, strict=True)}
        shown = [entry for entry in PANELS if stage != "grpo" or entry[1] != LOSSES]
        shown.append(("Benchmarks", task_curves([line for log in logs.values() for line in log])))
        charts = [chart for title, keys in shown if (chart := panel(title, keys, logs))]
        if charts:
            parts.append(f"<h3>{text(stage)}</h3><div class='charts'>{''.join(charts)}</div>")
    note = "<p class='note'>Over optimizer steps; the figure beside a name is the last one.</p>"
    return ["<h2>Training</h2>", note, *parts] if parts else []


def panel(title: str, keys: Sequence[tuple[str, str]], logs: dict[str, list[dict[str, Any]]]) -> str:
    """Return a chart, or nothing where no run logged any of its figures."""
    series: list[Series] = []
    for name, log in logs.items():
        for key, label in keys:
            points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
            if points:
                series.append((f"{name}: {label}" if len(logs) > 1 else label, points))
    return line_chart(title, series) if series else ""


def samples(run: Path, label: str) -> list[str]:
    """Return prompts with the answers of all models side by side."""
    shown = evaluation(run).get("samples", [])
    parts = []
    for sample in shown:
        cells = []
        for name, said in sample["answers"].items():
            marks = "".join(
                f"<span class='{'yes' if said[key] else 'no'}'>{'✓' if said[key] else '✗'} {word}</span>"
                for key, word in (("followed", "followed"), ("happy", "preferred ending"), ("ended", "ended"))
            )
            cells.append(f"<div><h4>{text(name)}</h4><p class='marks'>{marks}</p><p>{text(said['text'])}</p></div>")
        parts.append(f"<p class='prompt'>{text(sample['prompt'])}</p><div class='side'>{''.join(cells)}</div>")
    return [f"<h2>{text(label)}Samples</h2>", *parts] if parts else []


def data_tables(run: Path, label: str) -> list[str]:
    """Return what the data check found before SFT and DPO, and the size of the pretraining text."""
    found = records(run)
    parts = []
    if "metrics" in found.get("data", {}):
        metrics = found["data"]["metrics"]
        rows = [
            [split, *(f"{metrics[split][key]:,}" for key in ("documents", "tokens", "bytes"))]
            for split in ("train", "val")
            if split in metrics
        ]
        parts += ["<h3>pretraining text</h3>", table(["", "documents", "tokens", "bytes"], rows)]
    for name, record in found.items():
        if "data" in record:
            rows = [[line["what"], line["found"], line["level"], line["note"]] for line in record["data"]]
            parts += [f"<h3>{text(name)}</h3>", table(["", "found", "", ""], rows, kind="words")]
    return [f"<h2>{text(label)}Data</h2>", *parts] if parts else []


def times(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
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
    note = (
        f"Energy is estimated, not measured: the time of the stage times {CORE_WATTS} W for each CPU core and "
        f"{ACCELERATOR_WATTS} W for each accelerator of the machine."
    )
    header = ["", "time", "assumed power", "energy"]
    return ["<h2>Time and energy</h2>", table(header, rows), f"<p class='note'>{note}</p>"]


def watts(record: dict[str, Any]) -> int:
    """Return the power that is assumed for the machine of a stage."""
    machine = record.get("machine", {})
    return CORE_WATTS * (machine.get("cpus") or 1) + ACCELERATOR_WATTS * len(machine.get("accelerators", []))


def settings(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the configuration of each stage and the environment it ran in."""
    parts = ["<h2>Settings and environment</h2>"]
    for run, name in zip(runs, names, strict=True):
        label = f"{name}: " if len(runs) > 1 else ""
        for stage, record in records(run).items():
            rows = [[key, text_of(value)] for key, value in record["config"].items()]
            rows += [[f"input {key}", entry["sha256"][:16]] for key, entry in record["inputs"].items()]
            content = table(["", ""], rows, kind="words")
            parts.append(f"<details><summary>{text(label + stage)}</summary>{content}</details>")
            environment = {"commit": record.get("commit")} | record.get("machine", {}) | record.get("versions", {})
        if records(run):
            rows = [[key, text_of(value)] for key, value in environment.items()]
            content = table(["", ""], rows, kind="words")
            parts.append(f"<details><summary>{text(label)}environment</summary>{content}</details>")
    return parts


# ---- pieces ----


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Return a table; a first column of titles, then numbers, or words."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{''.join(f'<td>{with_interval(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll'><table class='{kind}'>{head}<tbody>{body}</tbody></table></div>"


def with_interval(cell: str) -> str:
    """Write a cell, with an interval at its end in small print."""
    value, opening, inside = cell.partition(" (")
    if opening and inside.endswith(")"):
        return f"{text(value)}<small>{text(inside[:-1])}</small>"
    return f"<em>{text(cell)}</em>" if cell in ("warning", "error") else text(cell)


def text(value: str) -> str:
    """Escape text; nothing in it is HTML."""
    return html.escape(value)


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
