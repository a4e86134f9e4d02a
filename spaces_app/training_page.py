"""The page `Training`: curves, results and facts, read from the record that the release carries beside its weights.

Nothing is computed here, so the page cannot say something else than the record.
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from pictures import table

RECORD = "training_record"
ORDER = ("tokenizer", "data", "chat", "pretrain", "sft", "dpo", "grpo", "eval")
STAGES = {
    "pretrain": "Pretraining",
    "sft": "Fine-tuning (SFT)",
    "dpo": "Preferences (DPO)",
    "grpo": "Reinforcement (GRPO)",
}
# Title, unit, and the keys of metrics.jsonl with the names of their lines.
CURVES = (
    ("Loss", "nats a token", {"train_loss": "training", "val_loss": "held-out"}),
    ("Loss", "", {"loss": "training", "eval_loss": "held-out"}),
    ("Bits per byte", "held-out text", {"val_bpb": "held-out"}),
    ("Reward", "sum of the checkers", {"reward": "training"}),
    ("Reward margin", "of the chosen", {"rewards/margins": "training", "eval_rewards/margins": "held-out"}),
    ("Pairs ranked right", "share", {"rewards/accuracies": "training", "eval_rewards/accuracies": "held-out"}),
    ("Learning rate", "", {"lr": "training"}),
)
RATES = {
    "followed": "Instruction followed",
    "ended": "Ended by itself",
    "followed_sampled": "Instruction followed, sampled",
    "happy": "Preferred ending, sampled",
    "happy_of_followed": "Preferred ending of those that followed",
}
TURNS = {
    "questions": "Questions about a story answered",
    "again": "Told again with the other ending",
    "next": "The next story followed",
    "open": "Open request followed",
    "small talk": "Honest where no story was asked for",
}
SETTINGS = (
    "learning_rate", "schedule", "optimizer", "batch_rows", "batch_size", "prompts_per_step", "num_generations",
    "epochs", "beta", "tune", "seed",
)  # fmt: skip
Record = dict[str, Any]


def load_record(model_id: str, revision: str | None) -> Record:
    """Return the content of the record's files: `results`, and for each stage `metrics` and `stage`; {} if none."""
    folder = Path(model_id) / RECORD
    if not Path(model_id).is_dir():
        try:
            found = snapshot_download(model_id, revision=revision, allow_patterns=f"{RECORD}/**")
        except (HfHubHTTPError, OSError, ValueError):
            return {}
        folder = Path(found) / RECORD
    record: Record = {"stages": {}, "results": read_json(folder / "eval" / "results.json")}
    for path in (folder / name / "stage.json" for name in ORDER if (folder / name / "stage.json").is_file()):
        metrics = path.parent / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        record["stages"][path.parent.name] = {
            "stage": read_json(path),
            "metrics": [json.loads(line) for line in lines if line.strip()],
        }
    return record if record["stages"] or record["results"] else {}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def curve(metrics: list[dict[str, Any]], keys: dict[str, str]) -> pd.DataFrame:
    """Return the points of one picture: step, value, and the line they belong to."""
    rows = [
        (line["step"], line[key], name)
        for key, name in keys.items()
        for line in metrics
        if isinstance(line.get(key), int | float)
    ]
    points = pd.DataFrame(rows, columns=["step", "value", "line"])
    return points[points.groupby("line")["value"].transform("size") > 1]  # one point is no line, but takes a legend


def results_table(results: dict[str, Any]) -> str:
    """Draw the evaluation: a column for each stage, 95 % intervals in parentheses."""
    models = results.get("models", {})
    if not models:
        return ""
    bits = [f"{found['text']['bits_per_byte']:.4f}" if "text" in found else "" for found in models.values()]
    rows = [["Bits per byte, held-out text", *bits]] if any(bits) else []
    for key, title in RATES.items():
        cells = [interval(found.get("stories", {}).get(key)) for found in models.values()]
        if any(cells):
            rows.append([title, *cells])
    for key, title in TURNS.items():
        cells = [interval(found.get("turns", {}).get("greedy", {}).get(key)) for found in models.values()]
        if any(cells):
            rows.append([title, *cells])
    asked = [found.get("questions", {}).get("greedy", {}) for found in models.values()]
    for kind in dict.fromkeys(kind for one in asked for kind in one):
        rows.append([f"Questions: {kind}", *(interval(one.get(kind)) for one in asked)])
    return table(["", *models], rows, "Results, with 95 % intervals")


def interval(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return ""
    if rate["rate"] is None:
        return "none"
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def facts_table(stages: Record) -> str:
    """Draw what each stage was given and how long it took."""
    rows = []
    for name, found in stages.items():
        stage = found["stage"]
        config = {key: stage.get("config", {}).get(key) for key in SETTINGS}
        settings = ", ".join(f"{key} {value}" for key, value in config.items() if value is not None)
        rows.append([name, f"{stage.get('seconds', 0):,.0f} s", describe(name, stage.get("metrics", {})), settings])
    return table(["Stage", "Time", "Data", "Settings"], rows, "Data and settings of each stage")


def describe(name: str, metrics: dict[str, Any]) -> str:
    """Say how much data a stage had."""
    if name == "data" and "train" in metrics:
        return "{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes".format(**metrics["train"])
    if {"rows", "tokens"} <= metrics.keys():
        return f"{metrics['rows']:,} rows, {metrics['tokens']:,} tokens"
    return ""


def training_page(record: Record, card: str) -> None:
    """Lay out the page and its endpoint for programs."""
    if not record:
        gr.Markdown("This model was published without a training record.")
    else:
        gr.HTML(results_table(record["results"]), elem_id="results", apply_default_css=False)
        for name, title in STAGES.items():
            if metrics := record["stages"].get(name, {}).get("metrics"):
                stage_curves(title, metrics)
        gr.HTML(facts_table(record["stages"]), elem_id="facts", apply_default_css=False)
    if card:
        with gr.Accordion("Model card", open=False):
            gr.Markdown(card, sanitize_html=True, elem_id="card")

    def training_record() -> dict[str, Any]:
        """Return the training record: results of the evaluation, and configuration and metrics of each stage."""
        return record

    gr.api(training_record, api_name="training")


def stage_curves(title: str, metrics: list[dict[str, Any]]) -> None:
    """Draw what a stage logged."""
    gr.Markdown(f"### {title}")
    with gr.Row():
        for name, unit, keys in CURVES:
            points = curve(metrics, keys)
            if len(points):
                gr.LinePlot(
                    points,
                    x="step",
                    y="value",
                    color="line",
                    color_map={"training": "#0d9488", "held-out": "#ea580c"},
                    title=f"{name} ({unit})" if unit else name,
                    x_title="step",
                    y_title=" ",
                    color_title=" ",
                    label=f"{title}: {name}",
                    show_label=False,
                    height=240,
                    min_width=290,
                    buttons=[],
                )
