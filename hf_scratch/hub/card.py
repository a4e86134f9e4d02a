"""The model card of a release: front matter for the Hub, and what a reader needs to use and to judge the model.

Every number comes from the run's own records; the caller gives them, and nothing here is measured or guessed.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from hf_scratch.hub.check import Check

TRAINING = {
    "pretrain": "pretraining on text",
    "sft": "supervised fine-tuning on conversations",
    "dpo": "direct preference optimization",
    "grpo": "reinforcement by the story checkers (GRPO)",
}
OWN_REWARD = "reinforcement by a reward function of the publisher's own (GRPO)"
KTO = "optimization by answers that were liked or not (KTO)"  # what the stage `dpo` makes of thumbs
# The settings that say most, in this order, of those that a stage has; the rest is in the training record.
SETTINGS = (
    "optimizer", "learning_rate", "schedule", "weight_decay", "batch_rows", "batch_size", "row_length",
    "context_length", "max_length", "beta", "loss_type", "tune",
)  # fmt: skip
SIZES = {
    "num_hidden_layers": "Layers",
    "hidden_size": "Hidden size",
    "intermediate_size": "Intermediate size (SwiGLU)",
    "num_attention_heads": "Attention heads",
    "num_key_value_heads": "Key/value heads",
    "head_dim": "Head size",
    "max_position_embeddings": "Context, tokens",
    "vocab_size": "Vocabulary, tokens",
    "tie_word_embeddings": "Embedding shared with the LM head",
}


# What the Hub takes as `license` (https://huggingface.co/docs/hub/repositories-licenses).
LICENSES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community "
    "h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl "
    "postgresql unknown unlicense wtfpl zlib".split()
)


@dataclass(frozen=True)
class Base:
    """The model that was fine-tuned, where the weights were not random at first."""

    name: str  # Hub id, or the name of a folder
    on_hub: bool
    license: str  # the Hub's name of it; empty: not known


@dataclass(kw_only=True)
class CardFacts:
    """What a card is written from."""

    title: str
    repo_id: str
    license: str
    base: Base | None  # None: random weights
    language: str
    about_data: str  # sentences on the text
    config: dict[str, Any]  # content of config.json
    parameters: int
    records: dict[str, dict[str, Any]]  # content of stage.json for each stage of the run, in order
    results: str  # Markdown: table of results and how they were measured
    example: str  # a prompt
    answer: str  # the model's greedy answer to it
    eval_results: Sequence[EvalResult]  # for the model's page; the same numbers stand in `results`
    checks: Sequence[Check]

    @property
    def chats(self) -> bool:
        """Whether the model was trained on conversations."""
        return not self.records.keys().isdisjoint(("sft", "dpo", "grpo"))

    @property
    def brings_code(self) -> bool:
        """Whether the model's code lies beside its weights; a stock model needs none."""
        return "auto_map" in self.config


def from_thumbs(record: dict[str, Any]) -> bool:
    """Whether a stage learnt from answers with a thumb up or down, as its data check says."""
    return any(finding["what"] == "thumbs up" for finding in record.get("data", ()))


def license_metadata(name: str) -> dict[str, str]:
    """Return a licence as a card's front matter has it: the Hub refuses a name that it does not know as `license`."""
    known = re.sub(r"-(only|or-later)$", "", "-".join(name.lower().split()))  # as SPDX writes it, for example
    if known in LICENSES:
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", known).strip("-") or "unknown"}


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the front matter of a folder's card, empty if there is none."""
    path = folder / "README.md"
    return (metadata_load(path) or {}) if path.is_file() else {}


def make_card(facts: CardFacts) -> ModelCard:
    """Return the card, whose front matter the Hub takes."""
    more: dict[str, Any] = dict(license_metadata(facts.license))
    if facts.chats:
        more["widget"] = [{"messages": [{"role": "user", "content": facts.example}]}]
    metadata = ModelCardData(
        language=facts.language,
        base_model=facts.base.name if facts.base and facts.base.on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        model_name=facts.title,
        eval_results=list(facts.eval_results),
        tags=[
            *(["custom_code", "scratch"] if facts.brings_code else []),
            *(["conversational"] if facts.chats else []),
        ],
        **more,
    )
    sections = {
        "How to use it": _usage(facts),
        "Results": facts.results,
        "The model": _table(["", ""], [[SIZES[key], facts.config[key]] for key in SIZES if key in facts.config]),
        "Training data": facts.about_data,
        "Training procedure": _procedure(facts.records),
        "Intended use and limits": LIMITS,
        "How it was verified": _verification(facts.checks),
        "Environment": _environment(facts.records),
        "Citation": citation(facts.title, facts.repo_id),
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {facts.title}\n\n{_introduction(facts)}\n\n{body}\n")


def _introduction(facts: CardFacts) -> str:
    origin = f"fine-tuned from `{facts.base.name}`" if facts.base else "trained from random weights"
    code = " Architecture and code are those of `hf_scratch`; the code comes with the weights."
    return (
        f"A decoder language model with {facts.parameters:,} parameters, {origin}: "
        f"{', then '.join(_stages(facts.records).values())}.{code if facts.brings_code else ''}"
    )


def _stages(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the name of each stage of training that the run had."""
    names = TRAINING | ({"dpo": KTO} if from_thumbs(records.get("dpo", {})) else {})
    names |= {"grpo": OWN_REWARD} if "reward" in records.get("grpo", {}).get("inputs", {}) else {}
    return {stage: name for stage, name in names.items() if stage in records}


LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{repo_id}"  # or the folder that holds this file
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)

"""
CHAT = """\
messages = [{{"role": "user", "content": {example}}}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, sanitize_control_tokens=True, return_tensors="pt"
)
output = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

It prints

> {answer}

`sanitize_control_tokens=True` keeps the spelling of a control token in a message plain text, so that nobody can write
a system turn into a conversation. """
CONTINUE = """\
inputs = tokenizer(tokenizer.bos_token + "The", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100, do_sample=True)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

The model continues a text; it was not trained to chat. """
REMOTE_CODE = """\
`trust_remote_code=True` runs the Python files of this repository: the model and its fast decoding.
vLLM's documentation promises the same for `vllm serve {repo_id} --trust-remote-code`; it was not tried. The weights
are those of a stock Qwen3 model: `hf-scratch export` writes them for programs without this code, and what was exported
is listed under "Other formats".
"""
STOCK_CODE = """\
`trust_remote_code=True` runs the one Python file of this repository, the fast decoding; the model loads without it.
"""
LIMITS = """\
A small model for learning, experiments and tests. It knows the world of its training data and nothing else: do not
ask it for facts, and do not rely on its answers. It was not tested for safety, bias, or languages other than that of
its data.
"""


def _usage(facts: CardFacts) -> str:
    if facts.chats:
        answer = html.escape(facts.answer.strip(), quote=False).replace("\n", "\n> ")
        run = CHAT.format(example=repr(facts.example), answer=answer)
    else:
        run = CONTINUE
    code = REMOTE_CODE.format(repo_id=facts.repo_id) if facts.brings_code else STOCK_CODE
    return LOAD.format(repo_id=facts.repo_id) + run + code


def _procedure(records: dict[str, dict[str, Any]]) -> str:
    rows = []
    for stage, name in _stages(records).items():
        config, metrics = records[stage]["config"], records[stage]["metrics"]
        unused = {"loss_type"} if from_thumbs(records[stage]) else set()  # KTO has one loss
        shown = [key for key in SETTINGS if config.get(key) and key not in unused]
        settings = ", ".join(f"{key} {_short(config[key])}" for key in shown)
        settings += f", precision {records[stage]['precision']}" if "precision" in records[stage] else ""
        steps = metrics.get("step", metrics.get("steps"))
        rows.append([stage, name, f"{steps:,}", settings, _minutes(records[stage]["seconds"])])
    table = _table(["stage", "what", "steps", "settings", "time"], rows)
    return f"{table}\n\nAll settings, losses and hashes of the inputs are in `training_record/`, a folder a stage."


def _verification(checks: Sequence[Check]) -> str:
    lines = [f"- {check.name}{f': {check.detail}' if check.detail else ''}" for check in checks]
    return (
        "Before this folder was put in place it was loaded in a clean process: an empty cache, and no way to import "
        "the package that trained it. What the trained model gave, this folder gave. "
        "What was checked:\n\n" + "\n".join(lines)
    )


def _environment(records: dict[str, dict[str, Any]]) -> str:
    last = list(records.values())[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    machine, total = last["machine"], sum(record.get("seconds", 0) for record in records.values())
    return (
        f"- Versions: {versions}\n- Machine: {machine['system']} {machine['machine']}, {machine['cpus']} CPU cores\n"
        f"- Time of all stages: {_minutes(total)}\n{_compute(records)}"
        f"- Commit of the code: {last['commit'] or 'unknown'}"
    )


def _compute(records: dict[str, dict[str, Any]]) -> str:
    metrics = records.get("pretrain", {}).get("metrics", {})
    if "tokens" not in metrics:
        return ""
    flops = 6 * metrics["parameters"] * metrics["tokens"]  # 2 forward and 4 backward a weight, arXiv:2001.08361
    return f"- Compute of pretraining: {flops:.2g} floating-point operations, counted as 6 a parameter and token\n"


def citation(title: str, repo_id: str) -> str:
    """Return how to cite the model, as BibTeX."""
    owner, _, name = repo_id.rpartition("/")
    return (
        f"```bibtex\n@misc{{{name},\n  title = {{{title}}},\n  author = {{{owner}}},\n"
        f"  howpublished = {{https://huggingface.co/{repo_id}}}\n}}\n```"
    )


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_short(cell) for cell in line)} |" for line in lines)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
