"""How the samples of an evaluation are shown in a report: what models answer, and what the base writes by itself."""

import re
import statistics
from typing import Any

START = "(nothing, only the token that begins a text)"
ABOUT_TEXT_SAMPLES = (
    "Learnt by heart? For each sample the longest run of words that stands in the training text, and the share of its "
    "runs of 8 words that do; beside it the same of held-out passages as long. A model that has learnt nothing by "
    "heart looks like these."
)


def samples(shown: list[dict[str, Any]]) -> str:
    """Return prompts with the answer of each model."""
    blocks = []
    for sample in shown:
        prompt = sample["prompt"]
        blocks.append(quoted(prompt) if "\n" in prompt else f"**{plain(prompt)}**")
        for name, said in sample["answers"].items():
            marks = [word for word in ("followed", "happy", "right", "ended") if said.get(word)]
            marks = marks or ["nothing of what was asked"]
            blocks += [f"{name} ({', '.join(marks)}):", quoted(said["text"])]
    return "\n\n".join(blocks)


def text_samples(written: dict[str, Any]) -> str:
    """Return what the base wrote after each prompt, with what of it stands in the training text."""
    blocks = []
    for prompt, some in by_prompt(written).items():
        blocks.append(f"**{plain(prompt) or START}**")
        for sample in some:
            blocks += [f"Temperature {sample['temperature']}:", quoted(sample["text"]), plain(agreement(sample))]
    return "\n\n".join(blocks)


def by_prompt(written: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the samples of each prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in written["samples"]:
        found.setdefault(sample["prompt"], []).append(sample)
    return found


def agreement(sample: dict[str, Any]) -> str:
    """Say what of a sample stands in the training text, and the same of held-out text."""
    own, others = sample["in_training"], sample["held_out"]
    passage = f" There: “{own['passage']}”" if own["passage"] else ""
    return (
        f"{own['words']} words in a row and {in_percent(own['grams'])} of its runs of 8 words stand in the training "
        f"text; of held-out text as long {others['words']:.1f} and {in_percent(others['grams'])}.{passage}"
    )


def in_percent(share: float | None) -> str:
    """Write a share of runs of words; a text may be too short to have any."""
    return "none" if share is None else f"{100 * share:.1f} %"


def agreement_rows(written: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: a column for each temperature, and one for held-out text."""
    every = written["samples"]
    groups = {
        f"temperature {value}": [one["in_training"] for one in every if one["temperature"] == value]
        for value in dict.fromkeys(one["temperature"] for one in every)
    }
    groups["held-out text"] = [one["held_out"] for one in every]
    longest = [f"{statistics.fmean(one['words'] for one in group):.1f}" for group in groups.values()]
    grams = [[one["grams"] for one in group if one["grams"] is not None] for group in groups.values()]
    return ["", *groups], [
        ["Longest run of words that stands in the training text", *longest],
        ["Runs of 8 words that stand in it", *(in_percent(statistics.fmean(g) if g else None) for g in grams)],
    ]


def how_written(written: dict[str, Any]) -> str:
    """Say how the samples were drawn and how much of the training text was looked through."""
    text = written["training_text"]
    whole = "all" if text["share"] == 1 else f"{100 * text['share']:.0f} %, in evenly spaced pieces,"
    return (
        f"Text of {written['model']}: drawn from all tokens with seed {written['seed']}, at most {written['tokens']} "
        f"tokens; {written['passages']} held-out passages beside each sample. Looked for in {whole} of "
        f"{text['words']:,} words of training text, in {text['seconds']} s."
    )


def plain(text: str) -> str:
    """Return text in which nothing is Markdown or HTML, on one line."""
    return escaped(" ".join(text.split()))


def quoted(text: str) -> str:
    """Quote a model's words; nothing in them is Markdown or HTML."""
    return "\n".join(f"> {line}" for line in escaped(text.strip()).splitlines() or [""])


def escaped(text: str) -> str:
    """Return text whose characters mean only themselves in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", text)
