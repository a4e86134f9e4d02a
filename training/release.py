"""Put a finished run together as a release: the model as a Hub repository, its card and record, and a Space beside it.

    python -m training.release --run runs/quickstart --output_dir runs/quickstart/release

Nothing is put in place before it was verified: loaded in a clean process that cannot import this code, the folder
gives the weights, logits and greedy answer of the model that was trained, and holds no pickle, secret or path.
"""

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch import ScratchForCausalLM  # noqa: F401, registers the model type with the Auto classes
from hf_scratch.card import CardFacts, make_card
from hf_scratch.verify import MESSAGES, Check, check_files, make_reference, require, verify
from training.eval_model import learns_stories
from training.report_markdown import procedure, results_table
from training.stage import atomic_folder, command, hash_input, open_stage, parse_config, read_json, write_json

ROOT = Path(__file__).parent.parent
STAGES = ("tokenizer", "data", "pretrain", "sft", "dpo", "grpo", "eval")
MODEL_STAGES = ("grpo", "dpo", "sft", "pretrain")  # the last one that ran is released
MODEL_FILES = ("*.json", "*.safetensors", "*.py", "*.jinja")
RECORD_FILES = ("metrics.jsonl", "results.json", "report.md", "loss.png")
STORIES = (
    "Short stories for children, told by a program of our own from word lists, facts and sentence templates: nothing "
    "was collected, and nobody else has rights in them. Test prompts share no combination of hero, thing, place and "
    "mishap with the training data."
)


@dataclass(kw_only=True)
class ReleaseConfig:
    """Settings of the stage `release`."""

    output_dir: str = field(metadata={"help": "Folder of the release."})
    run: str = field(metadata={"help": "Folder of the run, with a folder for each stage."})
    title: str = field(default="Scratch", metadata={"help": "Title of card and Space."})
    repo_id: str = field(default="your-name/scratch", metadata={"help": "Hub id that the model will have."})
    license: str = field(default="apache-2.0", metadata={"help": "The Hub's name of the model's licence."})
    language: str = field(default="en", metadata={"help": "Language of the text, as a code."})
    about_data: str = field(
        default="",
        metadata={"help": "What the card says about the text, its origin and licence; stories need nothing."},
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(ReleaseConfig, argv, __doc__)
    run = Path(config.run)
    records, source = read_run(run)
    inputs = [str(source), str(run / "eval"), *(str(run / name / "metrics.jsonl") for name in records)]
    stage = open_stage("release", config, {"run": [*inputs, str(ROOT / "spaces_app")]}, config.output_dir)
    if not stage.done:
        unverified = stage.folder / "unverified"
        shutil.rmtree(unverified, ignore_errors=True)
        try:
            checks = build_model(config, records, source, unverified / "model")
            build_space(config, unverified / "space")
            for name in ("model", "space"):
                with atomic_folder(stage.folder / name) as folder:
                    for path in (unverified / name).iterdir():
                        path.rename(folder / path.name)
        finally:
            shutil.rmtree(unverified, ignore_errors=True)
        stage.finish({"released": source.parent.name, "checks": {check.name: check.detail for check in checks}})
        print(f"{len(checks)} checks passed in a clean process:")
        print("\n".join(f"  {check.name}{f': {check.detail}' if check.detail else ''}" for check in checks))
    print(how_to_talk(stage.folder, run))


def read_run(run: Path) -> tuple[dict[str, dict[str, Any]], Path]:
    """Return the record of each stage of the run, and the folder of the model to release.

    Raises:
        ValueError: No model, a stage that is not finished, or an evaluation that is not of this model.
    """
    found = {name: read_json(run / name / "stage.json") for name in STAGES}
    records = {name: record for name, record in found.items() if record}
    unfinished = [name for name, record in records.items() if record["status"] != "done"]
    if unfinished:
        raise ValueError(f"{run / unfinished[0]} is not finished; run that stage to its end, or remove its folder.")
    source = next((run / name / "model" for name in MODEL_STAGES if name in records), None)
    if source is None:
        raise ValueError(f"{run} holds no trained model; run pretraining first or check --run.")
    results = read_json(run / "eval" / "results.json")
    if hash_input(str(source)) not in {model["sha256"] for model in results.get("models", {}).values()}:
        raise ValueError(
            f"{run / 'eval'} holds no results of {source}, which the card must state; "
            f"run `python -m training.eval_model` with it first."
        )
    return records, source


def build_model(config: ReleaseConfig, records: dict[str, dict[str, Any]], source: Path, folder: Path) -> list[Check]:
    """Assemble the model's repository in the folder, verify it and return the checks, all of which passed.

    Raises:
        ValueError: A check failed.
    """
    copy_files(source, folder, MODEL_FILES)
    for name, record in records.items():
        copy_files(Path(config.run) / name, folder / "training_record" / name, RECORD_FILES)
        write_json(folder / "training_record" / name / "stage.json", without_paths(record))
    if config.license == "apache-2.0":
        shutil.copy(ROOT / "LICENSE", folder)
    results = read_json(Path(config.run) / "eval" / "results.json")
    prompt = results["samples"][0]["prompt"] if results["samples"] else MESSAGES[0]["content"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    reference = make_reference(model, tokenizer, [{"role": "user", "content": prompt}])
    checks = verify(folder, reference)
    require(checks, "the release was not put in place: it")
    facts = CardFacts(
        title=config.title,
        repo_id=config.repo_id,
        license=config.license,
        language=config.language,
        about_data=describe_data(config, records),
        config=read_json(folder / "config.json"),
        parameters=model.num_parameters(),
        records=records,
        results=describe_results(results),
        example=prompt,
        answer=reference.observed["answer"],
        checks=checks,
    )
    make_card(facts).save(folder / "README.md")
    require(check_files(folder), "the release was not put in place: its card")
    return checks


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Copy the files that match, and no others: a trainer may leave pickles beside a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.name != "stage.json":
                shutil.copy(path, folder)


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's record with its inputs' hashes only: where they lay on this machine is nobody's business."""
    return record | {"inputs": {name: entry["sha256"] for name, entry in record["inputs"].items()}}


def describe_data(config: ReleaseConfig, records: dict[str, dict[str, Any]]) -> str:
    """Return what the card says about the data: its origin, and how much of it each stage saw."""
    about = config.about_data
    if not about:
        about = STORIES if learns_stories(records.get("data", {})) else "Text of the publisher's choice."
    lines = [about, ""]
    if "data" in records:
        text = "{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes"
        metrics = records["data"]["metrics"]
        lines += [f"- Pretraining: {text.format(**metrics['train'])}; held out: {text.format(**metrics['val'])}"]
    for name, rows in (("sft", "conversations"), ("dpo", "pairs of answers, one chosen and one rejected")):
        if name in records:
            lines.append("- {0}: {rows:,} {1}, {tokens:,} tokens".format(name, rows, **records[name]["metrics"]))
    return "\n".join(lines)


def describe_results(results: dict[str, Any]) -> str:
    """Return the results with how they were measured, for the card."""
    parts = [
        "A column is the model after that stage, on text and prompts that no stage has seen.",
        results_table(results["models"]),
        procedure(results),
        "Samples of every stage and the meaning of each number are in "
        "[the report](training_record/eval/report.md), the numbers in `training_record/eval/results.json`.",
    ]
    if results["curves"]:
        parts.append("![Loss during training](training_record/eval/loss.png)")
    return "\n\n".join(parts)


def build_space(config: ReleaseConfig, folder: Path) -> None:
    """Copy the Space and point it to the model's Hub id."""
    shutil.copytree(ROOT / "spaces_app", folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    app = folder / "app.py"
    code, replaced = re.subn(
        r'(environ\.get\("MODEL_ID"), ""\)', rf'\1, "{config.repo_id}")', app.read_text(encoding="utf-8")
    )
    assert replaced == 1, "spaces_app/app.py no longer reads MODEL_ID where the release sets it"
    app.write_text(code, encoding="utf-8")
    card = RepoCard.load(folder / "README.md")
    card.data.title, card.data.models = config.title, [config.repo_id]
    card.save(folder / "README.md")


def how_to_talk(release: Path, run: Path) -> str:
    """Return the commands that come next."""
    model = release / "model"
    page = "make demo" if model == Path("runs/quickstart/release/model") else ""
    page = page or f"MODEL_ID={model} python spaces_app/app.py"
    return textwrap.dedent(f"""
        Talk to it in the browser:
            {page}
        or in Python:
            from transformers import pipeline
            chat = pipeline("text-generation", "{model}", trust_remote_code=True)
            chat([{{"role": "user", "content": "Tell me a story about a fox named Pip who lost a red kite."}}])
        Card: {model / "README.md"}
        Report: {run / "eval" / "report.md"}""")


if __name__ == "__main__":
    main()
