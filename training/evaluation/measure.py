"""Measures the models of an evaluation one by one, compares each pair of them, and writes the reports."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from hf_scratch.bits_per_byte import Text, encode
from hf_scratch.load import load_from, load_tokenizer
from hf_scratch.tokenizer import Message, require_fit
from training.corpus.recipe import learns_stories
from training.engine.device import settle_tf32
from training.evaluation.anchors import find_anchors, text_seen
from training.evaluation.answers import Answer, Asking, answer, preference, score, score_turns, variety
from training.evaluation.config import EvalConfig
from training.evaluation.figures import figure
from training.evaluation.markdown import card_results, plot_curves, write_report
from training.evaluation.page import write_page
from training.evaluation.questions import Answered, Question, ask, read_questions, score_questions
from training.evaluation.statistics import mcnemar, paired_difference
from training.evaluation.task_scores import metrics_of
from training.evaluation.tasks import find_tasks, run_tasks, task_files
from training.evaluation.text_bits import measure_text, read_shards, read_texts
from training.evaluation.text_samples import sample_text
from training.stage.files import hash_input, read_json, write_json
from training.stage.record import open_stage
from training.stories.checker import Verdict, check
from training.stories.talk import Turn, prompts, turns
from training.stories.tell import Request

LONGEST_TRUE_ANSWER = 64  # tokens of the answer to a question, more than any has
Asked = list[tuple[Request, list[Message]]]


@dataclass
class Outcomes:
    """What a model did document by document and prompt by prompt, for the paired tests."""

    nats: np.ndarray | None = None  # (documents,) of the run's held-out text
    num_bytes: np.ndarray | None = None
    greedy: list[tuple[Answer, Verdict]] = field(default_factory=list)
    sampled: list[tuple[Answer, Verdict]] = field(default_factory=list)
    turns: dict[str, Answered] = field(default_factory=dict)  # greedy and sampled, answer and right
    questions: dict[str, Answered] = field(default_factory=dict)  # greedy and sampled, of the questions of a file
    written: dict[str, Any] = field(default_factory=dict)  # by itself, of the first model


def run(config: EvalConfig) -> None:
    """Run the stage."""
    models = parse_models(config.models)
    if not (config.data or config.text or config.tasks or config.num_prompts or config.questions):
        raise ValueError("there is nothing to measure; give --data, --text, --tasks, --questions or --num_prompts.")
    questions = read_questions(config.questions)
    if config.tasks:
        # A name that is misspelt and a file that is missing are told before anything is measured.
        find_tasks(config.tasks, config.task_data)
    # A model counts by what its folder holds, and by its name, which stands beside every figure: `NAME=` is no path,
    # and so counts as it is written.
    inputs: dict[str, Any] = {"models": [*models.values(), *(f"{name}=" for name in models)]}
    inputs |= {"data": config.data, "text": config.text, "questions": config.questions}
    if config.task_data:
        inputs["task_data"] = [path for task in config.tasks for path in task_files(task, config.task_data)]
    stage = open_stage("eval", config, inputs, config.output_dir)
    if stage.done:
        return
    disable_progress_bar()
    products = settle_tf32(allowed=True)
    asked = story_prompts(config)
    later = turns(config.split, config.seed, config.num_turns) if asked and config.num_turns else []
    results, outcomes = evaluate(config, models, asked, later, questions)
    results["products"] = products
    results["curves"] = plot_curves(models, stage.folder / "loss.png")
    records = {name: read_json(Path(folder).parent / "stage.json") for name, folder in models.items()}
    results["precision"] = {name: record["precision"] for name, record in records.items() if "precision" in record}
    if written := results["text_samples"]:
        add_text_seen(results["models"], records, stage.record["inputs"]["data"]["sha256"], written["training_text"])
    metrics = {name: record.get("metrics", {}) for name, record in records.items()}
    results["targets"] = {name: one["until_val_bpb"] for name, one in metrics.items() if "until_val_bpb" in one}
    write_json(stage.folder / "results.json", results)
    write_answers(stage.folder / "answers.jsonl", asked, later, questions, outcomes)
    card_results(results, stage.folder / "card_results.yaml")
    write_report(results, stage.folder / "report.md")
    stage.finish(results["models"])
    whole_run = stage.folder.parent if stage.folder.name == "eval" else stage.folder
    page = write_page([whole_run], stage.folder / "report.html")
    print(f"report: {stage.folder / 'report.md'} and {page}")


def add_text_seen(
    models: dict[str, Any], records: dict[str, dict[str, Any]], data_sha256: str, training_text: dict[str, Any]
) -> None:
    """Add to each model that was pretrained on this text how much of it the model saw."""
    for name, measured in models.items():
        if seen := text_seen(records[name], data_sha256, training_text):
            measured["seen"] = seen


def parse_models(options: list[str]) -> dict[str, str]:
    """Return the folder or Hub id of each name.

    Raises:
        ValueError: Not NAME=FOLDER, a name given twice, or a folder without a model.
    """
    models: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (name and equals and path) or name in models:
            raise ValueError(
                f"--models {option!r} is not a new NAME=FOLDER; write for example sft=runs/mine/sft/model."
            )
        hub_id = path.count("/") == 1 and not Path(path).parent.exists()
        if not hub_id and not (Path(path) / "config.json").is_file() and not is_old_hub_id(path):
            raise ValueError(f"{path} holds no model (no config.json); train it first or check the path.")
        models[name] = path
    return models


def is_old_hub_id(path: str) -> bool:
    """Whether a name without an owner, such as gpt2, is a model of the Hub and no folder."""
    if "/" in path or Path(path).exists():
        return False
    try:
        return bool(AutoConfig.from_pretrained(path))
    except (OSError, ValueError):
        return False


def load(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in float32, and its tokenizer.

    Raises:
        ValueError: There is no such model, or its tokenizer has more tokens than it.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = load_from(AutoModelForCausalLM, path, "model", dtype=torch.float32).to(device).eval()
    tokenizer = load_tokenizer(path)
    require_fit(tokenizer, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def evaluate(
    config: EvalConfig, models: dict[str, str], asked: Asked, later: list[Turn], questions: list[Question]
) -> tuple[dict[str, Any], dict[str, Outcomes]]:
    """Return the content of results.json, and what each model did prompt by prompt."""
    results: dict[str, Any] = {"models": {}, "prompts": None, "samples": []}
    if asked:
        settings = ("split", "seed", "temperature", "top_k", "max_new_tokens", "num_turns")
        results["prompts"] = {"count": len(asked)} | {name: getattr(config, name) for name in settings}
    outcomes: dict[str, Outcomes] = {}
    for name, path in models.items():
        results["models"][name], outcomes[name] = evaluate_model(
            config, path, asked, later, questions, first=not outcomes
        )
        print(one_line(name, results["models"][name]), flush=True)
    results["anchors"] = find_anchors(results["models"])
    results["samples"] = side_by_side(asked[: config.num_samples], outcomes)
    results["samples"] += questions_side_by_side(config.num_samples, questions, outcomes)
    if questions:
        how = {name: getattr(config, name) for name in ("seed", "temperature", "top_k", "max_new_tokens")}
        results["questions"] = {"count": len(questions)} | how
    first, outcome = next(iter(outcomes.items()))
    results["text_samples"] = {"model": first} | outcome.written if outcome.written else None
    results["paired"] = [
        {"from": old, "to": new} | compare(outcomes[old], outcomes[new])
        for old, new in itertools.combinations(models, 2)
    ]
    return results, outcomes


def evaluate_model(
    config: EvalConfig, path: str, asked: Asked, later: list[Turn], questions: list[Question], *, first: bool
) -> tuple[dict[str, Any], Outcomes]:
    """Return the measures of one model, and what it did prompt by prompt; of the first also what it writes."""
    model, tokenizer = load(path)
    measured: dict[str, Any] = {"sha256": hash_input(path), "parameters": model.num_parameters()}
    outcomes = Outcomes()
    if config.tasks:
        size = min(16, config.batch_size)
        measured["tasks"] = run_tasks(model, tokenizer, config.tasks, config.task_rows, size, config.task_data)
    if config.data:
        text = read_shards(model, config.data, tokenizer)
        measured["text"], outcomes.nats = measure(config, model, text)
        outcomes.num_bytes = text.num_bytes
        if first and config.num_samples:
            outcomes.written = sample_text(model, tokenizer, Path(config.data), config.num_samples, config.seed)
    measured["texts"] = {
        name: measure(config, model, encode(tokenizer, read_texts(file)))[0]
        for name, file in name_files(config.text).items()
    }
    if (asked or questions) and tokenizer.chat_template is None:
        raise ValueError(
            f"{path} has no chat template, so it cannot be asked; give --num_prompts 0 and no --questions to leave it."
        )
    how = Asking(config.temperature, config.top_k, config.max_new_tokens, config.batch_size, config.seed)
    if asked:
        measured |= ask_for_stories(model, tokenizer, asked, later, how, outcomes)
    if questions:
        for kind in ("greedy", "sampled"):
            outcomes.questions[kind] = ask(model, tokenizer, questions, how, sampled=kind == "sampled")
        found = {kind: score_questions(questions, answered) for kind, answered in outcomes.questions.items()}
        measured["questions"] = found
    return measured, outcomes


def ask_for_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    later: list[Turn],
    how: Asking,
    outcomes: Outcomes,
) -> dict[str, Any]:
    """Return what the checker of the stories finds in the answers, which are added to the outcomes."""
    for kind in ("greedy", "sampled"):
        said = answer(model, tokenizer, [messages for _, messages in asked], how, sampled=kind == "sampled")
        found = [(text, check(request, text.text)) for (request, _), text in zip(asked, said, strict=True)]
        setattr(outcomes, kind, found)
        outcomes.turns[kind] = answer_turns(model, tokenizer, later, how, sampled=kind == "sampled")
    greedy, sampled_answers = ([said for said, _ in both] for both in (outcomes.greedy, outcomes.sampled))
    stories = score([found for _, found in outcomes.greedy], greedy)
    stories |= preference([found for _, found in outcomes.sampled]) | variety(sampled_answers)
    turns = {
        kind: score_turns([turn.kind for turn in later], [right for _, right in found])
        for kind, found in outcomes.turns.items()
    }
    return {"stories": stories, "turns": turns}


def answer_turns(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, later: list[Turn], how: Asking, *, sampled: bool
) -> Answered:
    """Return the answer to each turn and whether it is right; one that must be short is not awaited for long."""
    brief = replace(how, max_new_tokens=min(how.max_new_tokens, LONGEST_TRUE_ANSWER))
    said: dict[int, Answer] = {}
    for short, asking in ((True, brief), (False, how)):
        places = [i for i, turn in enumerate(later) if (turn.answer is not None) == short]
        found = answer(model, tokenizer, [later[i].messages for i in places], asking, sampled=sampled)
        said |= dict(zip(places, found, strict=True))
    return [(said[i], turn.is_right(said[i].text)) for i, turn in enumerate(later)]


def name_files(files: Sequence[str]) -> dict[str, Path]:
    """Return the files by as little of the ends of their paths as tells them apart."""
    paths = list(dict.fromkeys(Path(file).absolute() for file in files))
    for parts in itertools.count(1):
        named = {"/".join(path.parts[-parts:]): path for path in paths}
        if len(named) == len(paths):
            return named
    raise AssertionError("whole paths differ")


def measure(config: EvalConfig, model: PreTrainedModel, text: Text) -> tuple[dict[str, Any], np.ndarray]:
    """Return bits per byte of a text with the configured window."""
    own = getattr(model.config, "max_position_embeddings", 2048)
    context = min(config.context, own) if config.context else own
    return measure_text(model, text, config.stride or None, context)


def story_prompts(config: EvalConfig) -> Asked:
    """Return the prompts to ask, none for a single model that was trained on other text than the stories."""
    if len(config.models) == 1 and config.data and not learns_stories(read_json(Path(config.data) / "stage.json")):
        return []
    return list(itertools.islice(prompts(config.split, config.seed), config.num_prompts))


def compare(old: Outcomes, new: Outcomes) -> dict[str, Any]:
    """Return the paired tests of two models: the same documents, the same prompts."""
    found: dict[str, Any] = {}
    if old.nats is not None and new.nats is not None and old.num_bytes is not None:
        bits = (old.nats / np.log(2), new.nats / np.log(2))
        found["bits_per_byte"] = paired_difference(*bits, old.num_bytes)
        found["bits_per_byte"]["share"] = float(bits[1].sum() / bits[0].sum() - 1)
    rights = [
        [right for answered in (model.turns, model.questions) for _, right in answered.get("greedy", [])]
        for model in (old, new)
    ]
    if rights[0]:
        found["turns"] = mcnemar(*rights)
    if old.greedy:
        followed = ([check.followed for _, check in model.greedy] for model in (old, new))
        happy = ([check.happy for _, check in model.sampled] for model in (old, new))
        found |= {"followed": mcnemar(*followed), "happy": mcnemar(*happy)}
    return found


def side_by_side(asked: Asked, outcomes: dict[str, Outcomes]) -> list[dict[str, Any]]:
    """Return prompts, each with the greedy answer of every model and what the checker says to it."""
    return [
        {
            "prompt": messages[-1]["content"],
            "answers": {
                name: asdict(model.greedy[i][0])
                | {key: getattr(model.greedy[i][1], key) for key in ("followed", "happy")}
                for name, model in outcomes.items()
            },
        }
        for i, (_, messages) in enumerate(asked)
    ]


def questions_side_by_side(
    number: int, questions: list[Question], outcomes: dict[str, Outcomes]
) -> list[dict[str, Any]]:
    """Return so many questions of each kind, with the greedy answer of every model and whether it is right."""
    kinds = dict.fromkeys(one.kind for one in questions)
    places = [[i for i, one in enumerate(questions) if one.kind == kind][:number] for kind in kinds]
    return [
        {
            "prompt": questions[i].messages[-1]["content"],
            "answers": {
                name: asdict(model.questions["greedy"][i][0]) | {"right": model.questions["greedy"][i][1]}
                for name, model in outcomes.items()
            },
        }
        for i in itertools.chain(*places)
    ]


def write_answers(
    path: Path, asked: Asked, later: list[Turn], questions: list[Question], outcomes: dict[str, Outcomes]
) -> None:
    """Write every answer of every model, a line each."""
    with path.open("w", encoding="utf-8") as file:
        for name, model in outcomes.items():
            for kind, said in (("greedy", model.greedy), ("sampled", model.sampled)):
                for (_, messages), (text, found) in zip(asked if said else [], said, strict=True):
                    line = {"model": name, "kind": kind, "prompt": messages[-1]["content"], **asdict(text)}
                    line |= {"followed": found.followed, **asdict(found)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            for kind, answered in model.turns.items():
                for turn, (text, right) in zip(later, answered, strict=True):
                    line = {"model": name, "kind": kind, "turn": turn.kind, "messages": turn.messages, **asdict(text)}
                    line |= {"right": right, "true_answer": turn.answer}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            for kind, answered in model.questions.items():
                for one, (text, right) in zip(questions, answered, strict=True):
                    line = {
                        "model": name,
                        "kind": kind,
                        "question": one.kind,
                        "messages": one.messages,
                        **asdict(text),
                    }
                    line |= {"right": right, "true_answers": one.answers}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def one_line(name: str, measured: dict[str, Any]) -> str:
    """Return the main numbers of a model in a line."""
    parts = []
    texts = {"held-out text": measured["text"]} if "text" in measured else {}
    parts += [
        f"{found['bits_per_byte']:.4f} bits per byte of {title}"
        for title, found in (texts | measured["texts"]).items()
    ]
    if "stories" in measured:
        parts.append("followed {followed[rate]:.1%}, happy {happy[rate]:.1%}".format(**measured["stories"]))
        if measured["turns"]["greedy"]:
            parts.append("questions {questions[rate]:.1%}".format(**measured["turns"]["greedy"]))
    asked = measured.get("questions", {}).get("greedy", {})
    parts += [f"{kind} {found['rate']:.1%}" for kind, found in asked.items()]
    for task, scores in measured.get("tasks", {}).items():
        parts += [f"{task} {key} {figure(value['value'])}" for key, value in metrics_of(scores).items()]
    return f"{name}: {', '.join(parts)}"
