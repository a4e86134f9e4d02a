"""A release folder small enough for the tests of the Space: two models of noise that talk until they are stopped."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_scratch import fast_generate

NAME = "Tiny teller"
EXAMPLE = "Tell me a story about an owl."
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
LOSSES = [5.0, 3.0, 2.5]
RATE = {"rate": 0.825, "low": 0.766, "high": 0.871, "count": 165, "n": 200}


def save_release(folder: Path, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save model, tokenizer, card and training record in the folder, as people get them."""
    model = make_model(max_position_embeddings=4096)
    model.generation_config = GenerationConfig(
        eos_token_id=[3, 0],
        pad_token_id=1,
        do_sample=True,
        temperature=0.6,
        top_k=30,
        max_new_tokens=64,
        suppress_tokens=[0, 1, 2, 3],  # control tokens: it never ends by itself
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "custom_generate").mkdir()
    shutil.copy(fast_generate.__file__, folder / "custom_generate" / "generate.py")
    card = {"model_name": NAME, "widget": [{"messages": [{"role": "user", "content": EXAMPLE}]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Another title\n")
    save_record(folder / "training_record")
    return folder


def named_or_noise(
    variable: str, folder: Path, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Return the release that an environment variable names, for pictures that show something, or one of noise."""
    if given := os.environ.get(variable):
        return Path(given).resolve()
    model = save_release(folder / "model", make_model, tokenizer)
    save_stage(model)
    return model


def save_stage(model: Path) -> Path:
    """Save another model beside the first, as a release does with the stages before."""
    from transformers import AutoModelForCausalLM

    stage = model.parent / "stages" / "sft"
    shutil.copytree(model, stage, ignore=shutil.ignore_patterns("training_record", "*.safetensors"))
    other = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    other.save_pretrained(stage)
    return stage


def save_record(folder: Path) -> None:
    """Write a record of one stage and its evaluation."""
    (folder / "pretrain").mkdir(parents=True)
    (folder / "eval").mkdir()
    lines = [
        {"step": 10 * i, "train_loss": loss, "val_loss": loss + 0.1, "val_bpb": loss / 4, "lr": 0.01}
        for i, loss in enumerate(LOSSES, start=1)
    ]
    (folder / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = {"stage": "pretrain", "config": {"learning_rate": 0.01, "seed": 0}, "seconds": 12.3, "metrics": {}}
    (folder / "pretrain" / "stage.json").write_text(json.dumps(stage))
    measured = {"text": {"bits_per_byte": 0.2387}, "stories": {"followed": RATE}}
    (folder / "eval" / "results.json").write_text(json.dumps({"models": {"pretrain": measured}}))


def make_published_run(run: Path, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write `run/release` as the stage leaves it, for a model of noise that ends its answers; weights over 10 MB."""
    from training.release import ReleaseConfig, build_browser, build_space

    save_published(
        run / "release" / "model", make_model(max_position_embeddings=512, intermediate_size=10_000), tokenizer
    )
    config = ReleaseConfig(output_dir=str(run / "release"), run=str(run), repo_id="your-name/tiny", title=NAME)
    build_space(config, run / "release" / "space")
    build_browser(config, run / "release" / "browser")
    (run / "release" / "stage.json").write_text('{"config": {"repo_id": "your-name/tiny"}}')
    return run


def save_published(
    folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, chats: bool = True, shard: str = "5GB"
) -> None:
    """Write the folder of a model as a release has it."""
    from hf_scratch.hub.verify import make_reference, save_reference

    model.generation_config = GenerationConfig(
        eos_token_id=[3, 0], pad_token_id=1, do_sample=False, exponential_decay_length_penalty=(8, 1.5)
    )
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    reference = make_reference(model, tokenizer)
    assert reference.observed["ended"]
    save_reference(reference, folder, chats=chats)
    card = {"license": "apache-2.0", "model_name": NAME, "widget": [{"messages": reference.messages}]}
    load = 'name = "your-name/tiny"\nmodel = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)\n'
    text = f"---\n{yaml.safe_dump(card)}---\n\n# {NAME}\n\n```python\n{load}```\n\n## Results\n\nNone.\n"
    (folder / "README.md").write_text(text)
