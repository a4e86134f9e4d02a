"""Measure models side by side: bits per byte of held-out text, and how well they do what story prompts ask.

    python -m training.eval_model --config training/recipes/quickstart/eval.yaml --data runs/mine/data \\
        --models base=runs/mine/pretrain/model sft=runs/mine/sft/model --output_dir runs/mine/eval

Every model gets the same prompts and answers greedily. `results.json` holds the numbers, `report.md` says what they
mean, `loss.png` shows the training curves.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM  # noqa: F401, registers the model type with the Auto classes
from hf_scratch.tokenizer import Message, encode_prompt
from training.bits_per_byte import bits_per_byte
from training.data.batches import load_shards
from training.data.stories import Check, Request, check, prompts
from training.report import plot_curves, write_report
from training.stage import command, hash_input, open_stage, parse_config, read_json, write_json

PARTS = ("hero", "item", "place", "problem", "complete")  # what `Check.followed` is made of
Z_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(kw_only=True)
class EvalConfig:
    """Settings of the stage `eval`."""

    output_dir: str = field(metadata={"help": "Folder of the results."})
    models: list[str] = field(metadata={"help": "NAME=FOLDER for each model, in the order they were trained."})
    data: str = field(
        metadata={"help": "Folder of token shards, made by training.prepare_data; its val split counts."}
    )
    num_prompts: int = field(default=200, metadata={"help": "Story prompts; 0 asks none."})
    split: Literal["test", "dev"] = field(
        default="test", metadata={"help": "Split of the prompts; dev is for tuning."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the prompts."})
    temperature: float = field(default=0.7, metadata={"help": "Of the sampled answers; the greedy ones have none."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer in tokens, within the context."})
    batch_size: int = field(default=256, metadata={"help": "Prompts answered at once."})
    num_samples: int = field(default=3, metadata={"help": "Prompts whose answers the report shows."})


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt: text without the end token, tokens with it, and whether it came to an end."""

    text: str
    tokens: int
    ended: bool


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(EvalConfig, argv, __doc__)
    models = parse_models(config.models)
    inputs = {"models": [*models.values(), *(f"{name}=" for name in models)], "data": config.data}
    stage = open_stage("eval", config, inputs, config.output_dir)
    if stage.done:
        return
    results = evaluate(config, models)
    results["curves"] = plot_curves(models, stage.folder / "loss.png")
    write_json(stage.folder / "results.json", results)
    write_report(results, stage.folder / "report.md")
    stage.finish(results["models"])
    print(f"report: {stage.folder / 'report.md'}")


def parse_models(options: list[str]) -> dict[str, str]:
    """Return the folder of each name.

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
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path} holds no model (no config.json); train it first or check the path.")
        models[name] = path
    return models


def evaluate(config: EvalConfig, models: dict[str, str]) -> dict[str, Any]:
    """Return the content of results.json."""
    asked = story_prompts(config)
    results: dict[str, Any] = {"models": {}, "prompts": None, "samples": []}
    if asked:
        results["prompts"] = {"count": len(asked)} | {
            k: getattr(config, k) for k in ("split", "seed", "temperature", "max_new_tokens")
        }
        results["samples"] = [
            {"prompt": messages[-1]["content"], "answers": {}} for _, messages in asked[: config.num_samples]
        ]
    for name, path in models.items():
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
        measured = {"sha256": hash_input(path), "parameters": model.num_parameters()}
        measured |= {"text": measure_text(model, config.data)}
        line = f"{name}: {measured['text']['bits_per_byte']:.4f} bits per byte"
        if asked:
            tokenizer = AutoTokenizer.from_pretrained(path)
            answers = answer(model, tokenizer, asked, config, sampled=False)
            checks = [check(request, said.text) for (request, _), said in zip(asked, answers, strict=True)]
            drawn = answer(model, tokenizer, asked, config, sampled=True)
            drawn_checks = [check(request, said.text) for (request, _), said in zip(asked, drawn, strict=True)]
            measured["stories"] = score(checks, answers) | preference(drawn_checks)
            for sample, said, found in zip(results["samples"], answers, checks, strict=False):
                sample["answers"][name] = asdict(said) | {"followed": found.followed, "happy": found.happy}
            line += ", followed {followed[rate]:.1%}, happy {happy[rate]:.1%}".format(**measured["stories"])
        print(line, flush=True)
        results["models"][name] = measured
    return results


def story_prompts(config: EvalConfig) -> list[tuple[Request, list[Message]]]:
    """Return the prompts to ask, none for a single model that was trained on other text than the stories."""
    if len(config.models) == 1 and not learns_stories(read_json(Path(config.data) / "stage.json")):
        return []
    return list(itertools.islice(prompts(config.split, config.seed), config.num_prompts))


def learns_stories(record: dict[str, Any]) -> bool:
    """Whether a record of the stage `data` says that its text is the embedded stories."""
    if not record or record["config"].get("sources"):
        return False
    return "files" not in record["inputs"] and record["config"]["dataset"] is None


def measure_text(model: PreTrainedModel, data: str) -> dict[str, Any]:
    """Return bits per byte and perplexity on the val split of the shards, read with the model's whole context."""
    shards, context = load_shards(Path(data), "val"), model.config.max_position_embeddings
    if shards.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the shards in {data} have {shards.vocab_size} token ids, the model {model.config.vocab_size}; "
            "they were made with another tokenizer. Run training.prepare_data with the model's."
        )
    found = bits_per_byte(model, shards.tokens, shards.starts, shards.num_bytes, context, model.device)
    measured = asdict(found) | {"documents": len(shards.starts), "context": context}
    return measured | {"perplexity": math.exp(found.nats_per_token)}


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[tuple[Request, list[Message]]],
    config: EvalConfig,
    *,
    sampled: bool,
) -> list[Answer]:
    """Answer the prompts greedily or sampled, up to an end token.

    Raises:
        ValueError: A prompt fills the model's context.
    """
    encoded = [encode_prompt(tokenizer, messages) for _, messages in asked]
    room = model.config.max_position_embeddings - max(map(len, encoded))
    if room < 1:
        raise ValueError(
            f"the longest prompt has {max(map(len, encoded))} tokens and the model's context "
            f"{model.config.max_position_embeddings}; there is no room for an answer. Train with a longer context."
        )
    how = (
        {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
        if sampled
        else {"do_sample": False}
    )
    torch.manual_seed(config.seed)
    answers = []
    for i in range(0, len(encoded), config.batch_size):
        inputs = tokenizer.pad({"input_ids": encoded[i : i + config.batch_size]}, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        output = model.generate(**inputs.to(model.device), **how, max_new_tokens=min(config.max_new_tokens, room))
        answers += [read_answer(tokenizer, ids, model) for ids in output[:, length:].tolist()]
    return answers


def read_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int], model: PreTrainedModel) -> Answer:
    """Cut generated token ids at the first end token and decode them."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    # Control tokens inside an answer stay visible: they are a fault that checker and reader should see.
    return Answer(tokenizer.decode(ids[:end]), len(ids) if end is None else end + 1, end is not None)


def score(checks: list[Check], answers: list[Answer]) -> dict[str, Any]:
    """Return the rates over all answers, each with its 95 % interval, and the mean length in tokens."""
    lengths = [said.tokens for said in answers]
    return {
        "followed": rate(sum(found.followed for found in checks), len(checks)),
        "ended": rate(sum(said.ended for said in answers), len(answers)),
        "parts": {part: rate(sum(getattr(found, part) for found in checks), len(checks)) for part in PARTS},
        "tokens": mean(lengths),
    }


def preference(checks: list[Check]) -> dict[str, Any]:
    """Return how sampled answers end; greedy ones would show the likelier ending only, however close the two are."""
    followed = [found for found in checks if found.followed]
    return {
        "followed_sampled": rate(len(followed), len(checks)),
        "happy": rate(sum(found.happy for found in checks), len(checks)),
        "happy_of_followed": rate(sum(found.happy for found in followed), len(followed)),
    }


def rate(count: int, n: int) -> dict[str, Any]:
    """Return count / n with its 95 % interval; the rate of nothing is None."""
    if n == 0:
        return {"rate": None, "low": None, "high": None, "count": 0, "n": 0}
    low, high = wilson(count, n)
    return {"rate": count / n, "low": low, "high": high, "count": count, "n": n}


def wilson(count: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (E. B. Wilson, JASA 22, 1927, p. 209).

    Unlike the textbook interval it is never empty and never leaves [0, 1], at 0 and n successes too.
    """
    p, z = count / n, Z_95
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def mean(values: list[int]) -> dict[str, Any]:
    """Return the mean with its 95 % interval by the normal approximation; a single value has none."""
    n, middle = len(values), statistics.fmean(values)
    if n == 1:
        return {"mean": middle, "low": None, "high": None, "n": n}
    half = Z_95 * statistics.stdev(values) / math.sqrt(n)
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": n}


if __name__ == "__main__":
    main()
