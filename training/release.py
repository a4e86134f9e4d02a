"""Put a finished run together as a release: the model as a Hub repository, its card and record, and a Space beside it.

    python -m training.release --run runs/quickstart --output_dir runs/quickstart/release

Nothing is put in place before it was verified: loaded in a clean process that cannot import this code, the folder
gives the weights, logits and greedy answer of the model that was trained, and holds no pickle, secret or path.
"""

import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError

import hf_scratch
from hf_scratch.hub.card import Base, CardFacts, from_thumbs, license_metadata, make_card, read_metadata
from hf_scratch.hub.check import Check, require
from hf_scratch.hub.files import check_files, read_config
from training.corpus.recipe import learns_stories
from training.evaluation.markdown import agreement_table, anchor_tables, eval_results, procedure, results_table
from training.evaluation.samples import ABOUT_TEXT_SAMPLES
from training.stage.config import parse_config
from training.stage.files import atomic_folder, hash_input, hash_text, read_json, write_json
from training.stage.record import MODELS, command, open_stage

if TYPE_CHECKING:
    from hf_scratch.hub.verify import Reference

ROOT = Path(__file__).parent.parent
STAGES = ("tokenizer", "data", "chat", *MODELS.values(), "eval")
MODEL_STAGES = tuple(reversed(MODELS.values()))  # the last one that ran is released
MODEL_FILES = ("*.json", "*.safetensors", "*.py", "*.jinja")
RECORD_FILES = ("metrics.jsonl", "results.json", "report.md", "loss.png")
# The folders of an absolute path, alone or within a command; no part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?:\bfile://|(?<![\w.:/-]))/(?:[^\s/]+/)+(?=[^\s/])")
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
    license: str = field(
        default="",
        metadata={
            "help": "Licence, by the Hub's name if it has one. Empty: that of what was fine-tuned, or apache-2.0."
        },
    )
    language: str = field(default="en", metadata={"help": "Language of the text, as a code."})
    about_data: str = field(
        default="",
        metadata={"help": "What the card says about the text, its origin and licence; stories need nothing."},
    )
    stages: list[str] = field(
        default_factory=list, metadata={"help": "Stages such as base or sft that must be fit to be published as well."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(ReleaseConfig, argv, __doc__)
    run = Path(config.run)
    records, source = read_run(run)
    inputs = [str(source), str(run / "eval"), *(str(run / name / "metrics.jsonl") for name in records)]
    stage = open_stage("release", config, {"run": [*inputs, os.path.relpath(ROOT / "spaces_app")]}, config.output_dir)
    if not stage.done:
        unverified = stage.folder / "unverified"
        shutil.rmtree(unverified, ignore_errors=True)
        try:
            for name in config.stages:
                cut_run(run, records, name)  # what is not there is told before anything is built
            checks = build_model(config, records, source, unverified / "model")
            build_stages(config, records, source, unverified / "stages")
            build_space(config, unverified / "space")
            build_browser(config, unverified / "browser")
            for name in ("model", "stages", "space", "browser"):
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
    require_results(run, source)
    return records, source


def require_results(run: Path, source: Path) -> None:
    """Raise ValueError if the run's evaluation has no numbers of this model."""
    if not has_results(run, source):
        raise ValueError(
            f"{run / 'eval'} holds no results of {source}, which the card must state; "
            f"run `python -m training.eval_model` with it first."
        )


def has_results(run: Path, source: Path) -> bool:
    """Whether the run's evaluation has numbers of this very model."""
    results = read_json(run / "eval" / "results.json")
    return hash_input(str(source)) in {model["sha256"] for model in results.get("models", {}).values()}


def cut_run(run: Path, records: dict[str, dict[str, Any]], name: str) -> tuple[dict[str, dict[str, Any]], Path]:
    """Return the records and the model of a run that had ended after this stage."""
    stage = MODELS.get(name)
    if stage not in records:
        raise ValueError(f"--stages {name}: the run has no such stage; it can have {', '.join(MODELS)}.")
    later = set(MODEL_STAGES[: MODEL_STAGES.index(stage)])
    require_results(run, run / stage / "model")
    return {key: record for key, record in records.items() if key not in later}, run / stage / "model"


def build_model(config: ReleaseConfig, records: dict[str, dict[str, Any]], source: Path, folder: Path) -> list[Check]:
    """Assemble the model's repository in the folder, verify it and return the checks, all of which passed.

    Raises:
        ValueError: A check failed, or the licence of what was fine-tuned is not known.
    """
    base = find_base(records)
    license = choose_license(config.license, base)
    copy_model(source, folder)
    for name, record in records.items():
        copy_files(Path(config.run) / name, folder / "training_record" / name, RECORD_FILES)
        write_json(folder / "training_record" / name / "stage.json", without_paths(record))
    if license_metadata(license) == {"license": "apache-2.0"}:
        shutil.copy(ROOT / "LICENSE", folder)
    results = read_json(Path(config.run) / "eval" / "results.json")
    measured = next(found for found in results["models"].values() if found["sha256"] == hash_input(str(source)))
    prompt = results["samples"][0]["prompt"] if results["samples"] else None
    parameters, reference, checks = verify_model(source, folder, prompt, chats="sft" in records)
    facts = CardFacts(
        title=config.title,
        repo_id=config.repo_id,
        license=license,
        base=base,
        language=config.language,
        about_data=describe_data(config.about_data, records, base),
        config=read_json(folder / "config.json"),
        parameters=parameters,
        records=records,
        results=describe_results(results),
        example=reference.messages[0]["content"],
        answer=reference.observed["answer"],
        checks=checks,
        eval_results=eval_results(measured),
    )
    make_card(facts).save(folder / "README.md")
    require(check_files(folder), "the release was not put in place: its card")
    return checks


def verify_model(
    source: Path, folder: Path, prompt: str | None, *, chats: bool
) -> tuple[int, "Reference", list[Check]]:
    """Compare the folder with the model that was trained, and return its parameters, what it said and the checks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_scratch.hub.verify import MESSAGES, make_reference, save_reference, verify

    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    reference = make_reference(model, tokenizer, [{"role": "user", "content": prompt}] if prompt else MESSAGES)
    save_reference(reference, folder, chats=chats)
    checks = verify(folder, reference)
    require(checks, "the release was not put in place: it")
    return model.num_parameters(), reference, checks


def build_stages(config: ReleaseConfig, records: dict[str, dict[str, Any]], source: Path, folder: Path) -> None:
    """Put the models of the stages before the released one beside it, for the Space to compare and to be published.

    Each gets all that the released one has. One that was not evaluated is only copied, if nobody asked for more.
    """
    folder.mkdir(parents=True)
    run = Path(config.run)
    for name, stage in MODELS.items():
        model = run / stage / "model"
        earlier = stage in records and model != source
        if name in config.stages or (earlier and has_results(run, model)):
            build_model(config, *cut_run(run, records, name), folder / name)
        elif earlier:
            copy_model(model, folder / name)
            require(check_files(folder / name), f"the release was not put in place: the model of the stage {stage}")


def copy_model(source: Path, folder: Path) -> None:
    """Copy a model, and with it the fast decoding, which transformers takes from this place.

    The tokenizer gets the list of the tokens that nobody's message may become, so that they stay text elsewhere too.
    """
    from transformers import AutoTokenizer

    from hf_scratch.tokenizer import keep_control_tokens_text

    copy_files(source, folder, MODEL_FILES)
    if told := keep_control_tokens_text(AutoTokenizer.from_pretrained(folder)):
        settings = read_json(folder / "tokenizer_config.json")
        write_json(folder / "tokenizer_config.json", settings | {"chat_control_tokens": told})
    (folder / "custom_generate").mkdir()
    shutil.copy(Path(hf_scratch.__file__).parent / "fast_generate.py", folder / "custom_generate" / "generate.py")


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Copy the files that match, and no others: a trainer may leave pickles beside a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.name != "stage.json":
                shutil.copy(path, folder)


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's record with its inputs' hashes only: where they lay on this machine is nobody's business."""
    return shorten_paths(record) | {"inputs": {name: entry["sha256"] for name, entry in record["inputs"].items()}}


def shorten_paths(value: Any) -> Any:
    """Return what JSON holds with the folders of absolute paths cut off, at any depth."""
    if isinstance(value, dict):
        return {key: shorten_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shorten_paths(entry) for entry in value]
    return ABSOLUTE.sub("", value) if isinstance(value, str) else value


def find_base(records: dict[str, dict[str, Any]]) -> Base | None:
    """Return the model that the first stage of the run started from, None if that stage was pretraining."""
    if "pretrain" in records:
        return None
    first = next(records[name] for name in MODELS.values() if name in records)
    path, sha = (first["inputs"]["model"][key] for key in ("path", "sha256"))
    if sha == hash_text(path):  # no folder was there: a Hub id
        return Base(path, True, hub_license(path))
    folder = Path(path)
    about = read_metadata(folder)
    imported = read_config(folder).get("model_type") == "scratch" and isinstance(about.get("base_model"), str)
    return Base(about["base_model"] if imported else folder.name, imported, about.get("license") or "")


def hub_license(repo_id: str) -> str:
    """Return the licence that a model's card on the Hub, or in its cache, names; empty if it cannot be read."""
    try:
        return ModelCard.load(repo_id).data.get("license") or ""
    except (HfHubHTTPError, OSError, ValueError):
        return ""


def choose_license(given: str, base: Base | None) -> str:
    """Return the licence of the model: as given, else that of the model that was fine-tuned.

    Raises:
        ValueError: It is not known.
    """
    if license := given or (base.license if base else "apache-2.0"):
        return license
    assert base is not None, "without a base there is a licence"
    raise ValueError(
        f"the model was fine-tuned from {base.name}, whose licence is not known here and holds for it too; "
        "look it up and name it with --license."
    )


def describe_data(about: str, records: dict[str, dict[str, Any]], base: Base | None) -> str:
    """Return what the card says about the data: its origin, and how much of it each stage saw."""
    lines = [about or (STORIES if only_stories(records) else "Text of the publisher's choice."), ""]
    if base:
        lines.append(f"- Before the stages of this run: what `{base.name}` was trained on; its own card tells")
    if {"pretrain", "data"} <= records.keys():
        text = "{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes"
        metrics = records["data"]["metrics"]
        lines += [f"- Pretraining: {text.format(**metrics['train'])}; held out: {text.format(**metrics['val'])}"]
    for name, rows in (("sft", "conversations"), ("dpo", "pairs of answers, one chosen and one rejected")):
        if name in records:
            kind = "answers, each with a thumb up or down" if from_thumbs(records[name]) else rows
            lines.append("- {0}: {rows:,} {1}, {tokens:,} tokens".format(name, kind, **records[name]["metrics"]))
    if "grpo" in records:
        own = "prompts" in records["grpo"]["inputs"]
        asked = "prompts of the publisher's choice" if own else "prompts of stories told by a program of our own"
        lines.append(f"- grpo: {asked}, and the model's own answers to them")
    return "\n".join(lines)


def only_stories(records: dict[str, dict[str, Any]]) -> bool:
    """Whether no stage, from random weights on, learnt from anything but the embedded stories."""
    aligned = (records[name]["inputs"]["data"]["path"] for name in ("sft", "dpo") if name in records)
    pretrained = "pretrain" in records and learns_stories(records.get("data", {}))
    asked = "prompts" not in records.get("grpo", {}).get("inputs", {})
    return pretrained and asked and all(data == "stories" for data in aligned)


def describe_results(results: dict[str, Any]) -> str:
    """Return the results with how they were measured, for the card."""
    parts = [
        "A column is the model after that stage, on text and prompts that no stage has seen.",
        results_table(results["models"]),
        procedure(results),
        *(["What others publish:", published] if (published := anchor_tables(results)) else []),
        *([ABOUT_TEXT_SAMPLES, learnt] if (learnt := agreement_table(results)) else []),
        "Samples of every stage and the meaning of each number are in "
        "[the report](training_record/eval/report.md), the numbers in `training_record/eval/results.json`.",
    ]
    if results["curves"]:
        parts.append("![Loss during training](training_record/eval/loss.png)")
    return "\n\n".join(parts)


def build_space(config: ReleaseConfig, folder: Path) -> None:
    """Copy the Space and point it to the model's Hub id, and to the branches that hold its stages."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "preferences", "browser")
    shutil.copytree(ROOT / "spaces_app", folder, ignore=ignored)
    app = folder / "app.py"
    names = sorted(path.name for path in (folder.parent / "stages").glob("*"))
    stages = " ".join(f"{name}={config.repo_id}@{name}" for name in names)
    code, replaced = app.read_text(encoding="utf-8"), 0
    for variable, value in (("MODEL_ID", config.repo_id), ("STAGES", stages)):
        code, found = re.subn(rf'(environ\.get\("{variable}"), ""\)', rf'\1, "{value}")', code)
        replaced += found
    assert replaced == 2, "spaces_app/app.py no longer reads MODEL_ID and STAGES where the release sets them"
    app.write_text(code, encoding="utf-8")
    name_space(config, folder)


def build_browser(config: ReleaseConfig, folder: Path) -> None:
    """Copy the page that runs the model in a browser; weights and engine join it when it is published or opened."""
    shutil.copytree(ROOT / "spaces_app" / "browser", folder, ignore=shutil.ignore_patterns(".*"))
    name_space(config, folder)


def name_space(config: ReleaseConfig, folder: Path) -> None:
    """Write title and model into the front matter of a Space."""
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
        Report: {run / "eval" / "report.md"}
        Publish it: hf-scratch publish {run} --repo-id USER/NAME""")


if __name__ == "__main__":
    main()
