"""The readable side of an evaluation: `report.md` with a table, its meaning and samples, and the curves' picture.

`training.eval_model` calls it; every number in the report stands in `results.json` beside it.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

ROWS = (
    ("followed", "Instruction followed"),
    ("ended", "Ended with an end token"),
    ("followed_sampled", "Instruction followed, sampled answers"),
    ("happy", "Preferred (happy) ending, sampled answers"),
    ("happy_of_followed", "Preferred ending, sampled answers that followed"),
)
PART_ROWS = (
    ("hero", "the hero"),
    ("item", "the thing"),
    ("place", "the place"),
    ("problem", "the mishap"),
    ("complete", "a whole story about one hero"),
)
Curves = tuple[tuple[str, str], ...]  # key in metrics.jsonl, label
LOSSES: Curves = (
    ("train_loss", "training"),
    ("loss", "training"),
    ("val_loss", "held-out"),
    ("eval_loss", "held-out"),
)
MEANING = """\
- **Bits per byte** is how many bits the model needs, on average, for each byte of text it has never seen; lower is
  better, and models with different tokenizers can be compared. After alignment it says what alignment cost.
- **Instruction followed**: a checker reads the answer. It counts if hero, thing, place and mishap are those that were
  asked for and no others, and the story has an ending. How the story ends does not matter here.
- **Preferred ending**: preference pairs choose stories that end happily, so this is what DPO should raise. The checker
  knows the endings; an answer without one is not happy. It is counted on sampled answers, because greedy ones
  show only the likelier ending.
- **Ended with an end token**: the model stopped by itself, before the longest answer allowed.
"""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write report.md from the content of results.json."""
    sections = ["# Evaluation", results_table(results["models"])]
    if results["curves"]:
        sections.append(f"![Loss during training: {', '.join(results['curves'])}](loss.png)")
    if results["prompts"]:
        sections += [parts_table(results["models"]), "## What the numbers mean", MEANING]
    sections += ["## How they were measured", procedure(results)]
    if results["samples"]:
        sections += ["## Samples", samples(results["samples"])]
    path.write_text("\n\n".join(section.rstrip() for section in sections) + "\n", encoding="utf-8")


def results_table(models: dict[str, Any]) -> str:
    """Return the main results, a column for each model."""
    rows = {
        "Bits per byte, held-out text": [f"{m['text']['bits_per_byte']:.4f}" for m in models.values()],
        "Perplexity a token, held-out text": [f"{m['text']['perplexity']:.2f}" for m in models.values()],
    }
    stories = [m["stories"] for m in models.values() if "stories" in m]
    if stories:
        rows |= {title: [percent(measured[key]) for measured in stories] for key, title in ROWS}
        rows["Length of an answer, tokens"] = [interval(measured["tokens"]) for measured in stories]
    return table(["", *models], [[title, *cells] for title, cells in rows.items()])


def parts_table(models: dict[str, Any]) -> str:
    """Return how often the answers got each part of the request right."""
    parts = [m["stories"]["parts"] for m in models.values()]
    rows = [[title, *(percent(measured[key]) for measured in parts)] for key, title in PART_ROWS]
    return "Of all answers, so many got right\n\n" + table(["", *models], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(rate: dict[str, Any]) -> str:
    """Write a rate with its interval, as 91.5 % (86.8 to 94.6)."""
    if rate["rate"] is None:
        return "none"
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def interval(mean: dict[str, Any]) -> str:
    """Write a mean with its interval."""
    return f"{mean['mean']:.1f}" + ("" if mean["low"] is None else f" ({mean['low']:.1f} to {mean['high']:.1f})")


def procedure(results: dict[str, Any]) -> str:
    """Return in sentences how the numbers came about."""
    text = next(iter(results["models"].values()))["text"]
    lines = [
        f"- Text: {text['documents']:,} held-out documents, {text['tokens']:,} tokens, {text['bytes']:,} bytes. Each "
        f"is scored from its separator on; one longer than the context of {text['context']} tokens through a window "
        "that moves on by half of it."
    ]
    if asked := results["prompts"]:
        lines += [
            f"- Prompts: {asked['count']} single-turn instructions of the `{asked['split']}` split of the stories, "
            f"seed {asked['seed']}. They share no combination of hero, thing, place and mishap with the training "
            "data. Every model gets the same chat prompts.",
            f"- Answers: greedy, or where it says sampled, drawn at temperature {asked['temperature']} with "
            f"seed {asked['seed']}; at most "
            f"{asked['max_new_tokens']} tokens, prompt and answer within the context.",
            "- In parentheses: 95 % intervals, Wilson's for rates and the normal approximation for the mean length.",
        ]
    return "\n".join(lines)


def samples(shown: list[dict[str, Any]]) -> str:
    """Return prompts with the answer of each model."""
    blocks = []
    for sample in shown:
        blocks.append(f"**{sample['prompt']}**")
        for name, said in sample["answers"].items():
            marks = [word for word in ("followed", "happy", "ended") if said[word]] or ["nothing of what was asked"]
            blocks += [f"{name} ({', '.join(marks)}):", quoted(said["text"])]
    return "\n\n".join(blocks)


def quoted(text: str) -> str:
    """Quote a model's words; nothing in them is Markdown or HTML."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text.strip())
    return "\n".join(f"> {line}" for line in escaped.splitlines() or [""])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, none if there is no file; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def plot_curves(models: dict[str, str], path: Path) -> list[str]:
    """Draw the curves of each model whose folder has a metrics.jsonl beside it, and return the names of these."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {name: read_metrics(Path(folder).parent / "metrics.jsonl") for name, folder in models.items()}
    panels = [panel for name, log in logs.items() if log for panel in panels_of(name, log)]
    if not panels:
        return []
    rows = math.ceil(len(panels) / 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(10, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, log, curves) in zip(axes.flat, panels, strict=False):
        draw(axis, title, log, curves)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return [name for name, log in logs.items() if log]


def panels_of(name: str, log: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]], Curves]]:
    """Return title, lines and curves of each panel that a stage's metrics fill."""
    loss = "preference loss" if "rewards/margins" in log[0] else "loss, nats a token"
    panels = [(f"{name}: {loss}", log, LOSSES)]
    if any(line.get("val_bpb") is not None for line in log):
        panels.append((f"{name}: bits per byte", log, (("val_bpb", "held-out"),)))
    return panels


def draw(axis: Any, title: str, log: list[dict[str, Any]], curves: Curves) -> None:
    """Draw one panel: the values that were measured, over optimizer steps."""
    for key, label in curves:
        points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 12 else None, markersize=3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend()
