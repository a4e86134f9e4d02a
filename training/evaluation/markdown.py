"""The readable side of an evaluation: `report.md` with tables, their meaning and samples, and the curves' picture.

`training.eval_model` calls it; every number in the report stands in `results.json` beside it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from training.evaluation.anchors import ABOUT, anchor_rows, sources
from training.evaluation.figures import figure
from training.evaluation.samples import ABOUT_TEXT_SAMPLES, agreement_rows, how_written, samples, text_samples
from training.evaluation.task_scores import (
    metrics_of,
    paradigm_rows,
    question_rows,
    task_curves,
    task_procedure,
    task_score,
)

ROWS = (
    ("followed", "Instruction followed"),
    ("ended", "Ended with an end token"),
    ("followed_sampled", "Instruction followed, sampled answers"),
    ("happy", "Preferred (happy) ending, sampled answers"),
    ("happy_of_followed", "Preferred ending, sampled answers that followed"),
)
TURN_ROWS = (
    ("questions", "Questions about a story answered exactly"),
    ("again", "Told again with the other ending"),
    ("next", "The next story followed"),
    ("open", "Request that leaves nearly all open followed"),
    ("small talk", "Honest where no story was asked for"),
)
QUESTION_ROWS = (
    ("who", "who it was about"),
    ("name", "the hero's name"),
    ("had", "what the hero had"),
    ("happened", "what happened"),
    ("where", "where it happened"),
    ("place", "where the hero was"),
    ("helped", "who helped"),
    ("mood", "whether the hero was happy"),
    ("can", "what the helper can do"),
    ("color", "the color of the thing"),
)
VARIETY_ROWS = (
    ("distinct_1", "Different words among all words"),
    ("distinct_2", "Different pairs of words"),
    ("distinct_3", "Different runs of three words"),
    ("repetition", "Phrases repeated within an answer"),
)
PART_ROWS = (
    ("hero", "the hero"),
    ("item", "the thing"),
    ("place", "the place"),
    ("problem", "the mishap"),
    ("complete", "a whole story about one hero"),
)
ENOUGH = 0.9  # below this rate something is named as missing
MISSING = "More steps of pretraining, or a higher copy_strength, help a small model to carry a kind of fact on."
Curves = tuple[tuple[str, str], ...]  # key in metrics.jsonl, label
LOSSES: Curves = (
    ("train_loss", "training"),
    ("loss", "training"),
    ("val_loss", "held-out"),
    ("eval_loss", "held-out"),
)
PRECISIONS = {"fp32": "fp32", "bf16": "bf16 autocast"}
REWARDS: Curves = (  # what GRPO raises; its loss is about 0, whatever is learnt
    ("reward", "sum"),
    ("rewards/instruction/mean", "instruction"),
    ("rewards/happy_ending/mean", "happy ending"),
)
MEANING = """\
- **Bits per byte** is how many bits the model needs, on average, for each byte of text it has never seen; lower is
  better, and models with different tokenizers can be compared. After alignment it says what alignment cost.
- **Instruction followed**: a checker reads the answer. It counts if hero, thing, place and mishap are those that were
  asked for and no others, and the story has an ending. How the story ends does not matter here.
- **Preferred ending**: preference pairs choose stories that end happily, so this is what DPO should raise. The checker
  knows the endings; an answer without one is not happy. It is counted on sampled answers, because greedy ones
  show only the likelier ending.
- **Questions, the other ending, the next story**: the second turn of a talk, after a story that the generator told. An
  answer to a question counts if it is the true one word for word. The other ending counts if the story is told again,
  as asked for, and ends the other way.
- **Honest where no story was asked for**: greetings, thanks and requests in phrasings that training did not have get
  the sentence that says what the model can do.
- **Ended with an end token**: the model stopped by itself, before the longest answer allowed.
- **Different words, pairs, runs of three**: among all of the sampled answers together (distinct-n); a model that says
  the same to every prompt has few. **Phrases repeated**: the share of an answer's runs of four words that stood in it
  before.
- **What each stage changed**: both models on the same documents and prompts. Bits have a bootstrap interval of the
  difference; prompts gained and lost have McNemar's exact p, not corrected for the number of comparisons.
"""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write report.md from the content of results.json."""
    sections = ["# Evaluation", results_table(results["models"])]
    if lacking := [*missed_targets(results.get("targets", {})), *missing(results["models"])]:
        sections += ["## What is missing", "\n".join(f"- {line}" for line in lacking), MISSING]
    if published := anchor_tables(results):
        sections += ["## Beside what others publish", published]
    if paired := paired_table(results):
        sections += ["## What each stage changed", paired]
    if paradigms := paradigm_rows(results["models"]):
        sections += ["## BLiMP by paradigm", table(["", *results["models"]], paradigms)]
    if results["curves"]:
        sections.append(f"![Loss during training: {', '.join(results['curves'])}](loss.png)")
    if results["prompts"]:
        sections += ["## What the answers got right", table(["", *results["models"]], part_rows(results["models"]))]
        sections += ["## What the numbers mean", MEANING]
    sections += ["## How they were measured", procedure(results)]
    if results["samples"]:
        sections += ["## Samples", samples(results["samples"])]
    if written := results.get("text_samples"):
        sections += [f"## What {written['model']} writes by itself", agreement_table(results)]
        sections += [ABOUT_TEXT_SAMPLES, how_written(written), text_samples(written)]
    path.write_text("\n\n".join(section.rstrip() for section in sections) + "\n", encoding="utf-8")


def missed_targets(targets: dict[str, Any]) -> list[str]:
    """Return a line for each model whose training ended before it had the bits per byte that it was to reach."""
    return [
        f"{name}: {found['target']} bits per byte of held-out text, which training did not reach; raise max_steps"
        for name, found in targets.items()
        if found["reached_at"] is None
    ]


def missing(models: dict[str, Any]) -> list[str]:
    """Return a line for each aligned model that does not carry a kind of fact on, or cannot answer a kind of question.

    The first of several models is the base, which was not taught to follow.
    """
    lines = []
    for name, measured in list(models.items())[len(models) > 1 :]:
        parts = measured.get("stories", {}).get("parts", {})
        asked = measured.get("turns", {}).get("greedy", {})
        found = [(f"{title} is right", parts[key]) for key, title in PART_ROWS if key in parts]
        found += [(f"the question {title} is answered", asked[key]) for key, title in QUESTION_ROWS if key in asked]
        found += [(f"{title[0].lower()}{title[1:]}", asked[key]) for key, title in TURN_ROWS[1:] if key in asked]
        lines += [f"{name}: {title}: {percent(rate)}" for title, rate in found if rate["rate"] < ENOUGH]
    return lines


def results_table(models: dict[str, Any]) -> str:
    """Return the main results, a column for each model."""
    return table(["", *models], [[title, *cells] for title, cells in result_rows(models).items()])


def result_rows(models: dict[str, Any]) -> dict[str, list[str]]:
    """Return the cells of each result, one for each model; what was not measured is left empty."""
    every = list(models.values())
    rows: dict[str, list[str]] = {}
    if any("text" in m for m in every):
        rows["Bits per byte, held-out text"] = [bits(m.get("text")) for m in every]
        rows[f"Bits per byte, change from {next(iter(models))}"] = cost(every)
        rows["Perplexity a token, held-out text"] = [
            figure(m["text"]["perplexity"], 2) if "text" in m else "" for m in every
        ]
    for name in dict.fromkeys(name for m in every for name in m.get("texts", {})):
        rows[f"Bits per byte, {name}"] = [bits(m.get("texts", {}).get(name)) for m in every]
    if any("stories" in m for m in every):
        stories = [m.get("stories", {}) for m in every]
        rows |= {title: [percent(m[key]) if key in m else "" for m in stories] for key, title in ROWS}
        rows |= turn_rows(every, TURN_ROWS)
        rows["Length of an answer, tokens"] = [interval(m["tokens"]) if "tokens" in m else "" for m in stories]
        if any("repetition" in m for m in stories):
            rows |= {title: [share(m.get(key)) for m in stories] for key, title in VARIETY_ROWS}
    rows |= question_rows(every)
    for task in dict.fromkeys(task for m in every for task in m.get("tasks", {})):
        found = [m.get("tasks", {}).get(task, {}) for m in every]
        every_metric = [metrics_of(scores) for scores in found]
        for metric in dict.fromkeys(name for one in every_metric for name in one):
            rows[f"{task}, {metric}"] = [task_score(one.get(metric)) for one in every_metric]
    return rows


def anchor_tables(results: dict[str, Any]) -> str:
    """Return our scores beside those that others publish, with where they were read; nothing if there are none."""
    anchors = results.get("anchors", [])
    if not anchors:
        return ""
    read = [f"- {names}: {', '.join(f'<{one}>' for one in where)}" for names, where in sources(anchors).items()]
    return "\n\n".join([table(*anchor_rows(results["models"], anchors)), ABOUT, "\n".join(read)])


def agreement_table(results: dict[str, Any]) -> str:
    """Return how much of the base's samples, and of held-out text, stands in the training text."""
    return table(*agreement_rows(results["text_samples"])) if results.get("text_samples") else ""


def bits(found: dict[str, Any] | None) -> str:
    """Write bits per byte with their interval."""
    if found is None:
        return ""
    inside = "" if found.get("low") is None else f" ({found['low']:.4f} to {found['high']:.4f})"
    return f"{found['bits_per_byte']:.4f}{inside}"


def cost(models: list[dict[str, Any]]) -> list[str]:
    """Write how many more bits each model needs than the first: what alignment cost."""
    first = models[0].get("text", {}).get("bits_per_byte")
    if first is None:
        return [""] * len(models)
    return [
        "",
        *(f"{100 * (m['text']['bits_per_byte'] / first - 1):+.1f} %" if "text" in m else "" for m in models[1:]),
    ]


def share(found: dict[str, Any] | None) -> str:
    """Write a mean share with its interval."""
    if found is None:
        return ""
    inside = "" if found["low"] is None else f" ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
    return f"{100 * found['mean']:.1f} %{inside}"


def paired_table(results: dict[str, Any]) -> str:
    """Return the paired tests between models, none if there is a single one."""
    rows = paired_rows(results)
    return table(PAIRED_HEADER, rows) if rows else ""


PAIRED_HEADER = ["from → to", "bits per byte", "instruction followed", "preferred ending", "other turns right"]


def paired_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return a row for each pair of models: the difference in bits, and prompts gained and lost with their p."""
    rows = []
    for pair in results.get("paired", []):
        cells = [f"{pair['from']} → {pair['to']}"]
        found = pair.get("bits_per_byte")
        cells.append(f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})" if found else "")
        for key in ("followed", "happy", "turns"):
            test = pair.get(key)
            cells.append(f"{test['gained']} gained, {test['lost']} lost, p {p_value(test['p'])}" if test else "")
        rows.append(cells)
    return rows


def p_value(p: float) -> str:
    """Write a p-value; below a thousandth its size says no more."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def card_results(results: dict[str, Any], path: Path) -> None:
    """Write the results as a model card's `model-index`, for every model."""
    index = []
    for name, measured in results["models"].items():
        found = eval_results(measured)
        index += eval_results_to_model_index(name, found) if found else []
    path.write_text(yaml.safe_dump({"model-index": index}, sort_keys=False), encoding="utf-8")


def eval_results(measured: dict[str, Any]) -> list[EvalResult]:
    """Return a model's results as the metadata of its card has them."""
    texts = {"held-out text": measured.get("text"), **measured.get("texts", {})}
    found = [(name, "bits_per_byte", "Bits per byte", text["bits_per_byte"]) for name, text in texts.items() if text]
    stories = measured.get("stories", {})
    found += [("story prompts", key, title, stories[key]["rate"]) for key, title in ROWS if key in stories]
    later = measured.get("turns", {}).get("greedy", {})
    found += [
        ("later turns", key.replace(" ", "_"), title, later[key]["rate"]) for key, title in TURN_ROWS if key in later
    ]
    asked = measured.get("questions", {}).get("greedy", {})
    found += [("questions", kind.replace(" ", "_"), kind, one["rate"]) for kind, one in asked.items()]
    for task, scores in measured.get("tasks", {}).items():
        found += [(task, name.replace(", ", "_"), name, score["value"]) for name, score in metrics_of(scores).items()]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset.replace(" ", "-"),
            dataset_name=dataset,
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for dataset, metric, title, value in found
        if value is not None
    ]


def turn_rows(models: list[dict[str, Any]], rows: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the cells of what is asked besides one story, greedy and sampled, where it was measured."""
    found = {}
    for key, title in rows:
        for kind, ending in (("greedy", ""), ("sampled", ", sampled")):
            rates = [m.get("turns", {}).get(kind, {}).get(key) for m in models]
            if any(rates):
                found[title + ending] = [percent(one) if one else "" for one in rates]
    return found


def part_rows(models: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the parts of a request."""
    parts = [m["stories"]["parts"] for m in models.values()]
    rows = [[title, *(percent(measured[key]) for measured in parts)] for key, title in PART_ROWS]
    questions = turn_rows(list(models.values()), QUESTION_ROWS)
    return rows + [[f"asked: {title}", *cells] for title, cells in questions.items()]


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
    first = next(iter(results["models"].values()))
    lines = []
    for name, text in {"Text": first.get("text"), **first.get("texts", {})}.items():
        if text is not None:
            lines.append(
                f"- {name}: {text['documents']:,} held-out documents, {text['tokens']:,} tokens, {text['bytes']:,} "
                f"bytes. Each is scored from its separator on; one longer than the context of {text['context']} "
                f"tokens through a window that moves on by {text.get('stride', text['context'] // 2)} tokens."
            )
    if asked := results["prompts"]:
        lines += [
            f"- Prompts: {asked['count']} single-turn instructions of the `{asked['split']}` split of the stories, "
            f"seed {asked['seed']}. They share no combination of hero, thing, place and mishap with the training "
            "data. Every model gets the same chat prompts.",
            f"- Answers: greedy, or where it says sampled, drawn at temperature {asked['temperature']} with "
            f"seed {asked['seed']}{likeliest(asked)}; at most "
            f"{asked['max_new_tokens']} tokens, prompt and answer within the context.",
        ]
    if asked := results.get("questions"):
        lines.append(
            f"- Questions: {asked['count']:,} from a file. An answer is right if it is a true one word for word; a "
            "continuation if it ends by itself with a sentence and repeats neither itself nor what was given. Greedy, "
            f"or sampled at temperature {asked['temperature']} with seed {asked['seed']}{likeliest(asked)}."
        )
    if precision := results.get("precision"):
        trained = ", ".join(f"{name} in {PRECISIONS[how]}" for name, how in precision.items())
        exact = "and so is every evaluation here"
        rounded = "every evaluation here rounds what it multiplies to TF32"
        here = rounded if results.get("products") == "tf32" else exact
        lines.append(f"- Precision: {trained}; the weights are float32, {here}.")
    if any("tasks" in m for m in results["models"].values()):
        lines += task_procedure(first.get("tasks", {}))
    lines.append(
        "- In parentheses: 95 % intervals. Rates have Wilson's, since the bootstrap's is empty at 0 and 100 %; the "
        "shares of different words have the jackknife's, since the bootstrap would count an answer drawn twice as "
        "repeated; all others have the bootstrap's."
    )
    return "\n".join(lines)


def likeliest(asked: dict[str, Any]) -> str:
    """Return from how many tokens a sampled answer was drawn."""
    return f" from the {asked['top_k']} likeliest tokens" if asked.get("top_k") else ""


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
    if "reward" in log[0]:
        return [(f"{name}: reward of the checkers", log, REWARDS)]
    loss = "preference loss" if "rewards/margins" in log[0] else "loss, nats a token"
    panels = [(f"{name}: {loss}", log, LOSSES)]
    if any(line.get("val_bpb") is not None for line in log):
        panels.append((f"{name}: bits per byte", log, (("val_bpb", "held-out"),)))
    if tasks := task_curves(log):
        panels.append((f"{name}: benchmarks", log, tasks))
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
