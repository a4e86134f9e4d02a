"""What a pretraining run will need: memory by calculation, and time by the peak of a GPU or by a few steps here."""

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.engine.batches import Windows
from training.engine.config import PretrainConfig
from training.engine.cost import (
    Memory,
    count_parameters,
    flops_per_token,
    keeps_whole_gradient,
    largest_micro_batch,
    training_memory,
    utilisation_of,
)
from training.engine.device import memory_of_device, resolve_precision
from training.engine.gpus import HARDWARE
from training.engine.init_from import initial_config
from training.engine.initial_weights import model_config
from training.engine.loop import PretrainingRun
from training.engine.parallel import make_accelerator
from training.engine.token_shards import Shards
from training.stage.config import parse_config

USABLE = 0.9  # share of a device's memory to plan with; the rest is for the driver, buffers of NCCL and fragments
TOKENS_A_PARAMETER = 20  # where a given amount of compute is best spent (Hoffmann et al. 2022, arXiv:2203.15556)
MEASURED_STEPS = 3


@dataclass(frozen=True)
class Recipe:
    """What is to be trained: the stage's settings and the model that they make."""

    config: PretrainConfig
    model: ScratchConfig

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, as if every row were full."""
        return self.config.max_steps * self.config.step_tokens


def read_recipe(path: Path, vocab_size: int | None = None) -> Recipe:
    """Return the pretraining stage of a recipe, with the vocabulary of the tokenizer.yaml beside it.

    With `init_from` sizes and vocabulary are those of that model.

    Raises:
        ValueError: There is no such recipe, or it has no vocabulary and none is given, or another one is.
    """
    file = path / "pretrain.yaml" if path.is_dir() else path
    inputs = [word for name in ("data", "tokenizer", "output_dir") for word in (f"--{name}", "-")]
    config = parse_config(PretrainConfig, ["--config", str(file), *inputs])
    if config.init_from:
        model = initial_config(config)
        if vocab_size not in (None, model.vocab_size):
            raise ValueError(
                f"--vocab_size {vocab_size}, but init_from={config.init_from} has {model.vocab_size} tokens; leave it "
                "out."
            )
        return Recipe(config, model)
    beside = file.with_name("tokenizer.yaml")
    if vocab_size is None and beside.exists():
        vocab_size = (yaml.safe_load(beside.read_text(encoding="utf-8")) or {}).get("vocab_size")
    if vocab_size is None:
        raise ValueError(f"{beside} names no vocab_size; give --vocab_size.")
    return Recipe(config, model_config(config, vocab_size))


def describe(recipe: Recipe) -> str:
    """Return parameters, operations and tokens, which do not depend on the hardware."""
    total, without_embedding = count_parameters(recipe.model)
    each = flops_per_token(recipe.model, recipe.config.row_tokens)
    suggested = TOKENS_A_PARAMETER * total
    return (
        f"parameters   {total:,}, {without_embedding:,} without embedding\n"
        f"operations   {each:.3g} a token (6N + attention), {each * recipe.tokens:.3g} in all\n"
        f"tokens       {recipe.tokens:,} in {recipe.config.max_steps:,} steps\n"
        f"suggested    {suggested:,} tokens, {TOKENS_A_PARAMETER} a parameter (arXiv:2203.15556), "
        f"{suggested / (recipe.tokens / recipe.config.max_steps):,.0f} steps"
    )


def memory_of(
    recipe: Recipe, rows: int, bf16: bool, shards: int = 1, whole_gradient: bool = False, program: int = 0
) -> Memory:
    """Return what one process of the recipe needs with this many rows at once."""
    config = recipe.config
    sizes = (recipe.model, rows, config.row_tokens, config.optimizer)
    where: dict[str, Any] = {"shards": shards, "whole_gradient": whole_gradient}
    where |= {"program": program, "on_cpu": program > 0, "checkpointing": config.activation_checkpointing}
    return training_memory(*sizes, bf16, config.pack_documents, **where)


def plan_for_gpus(recipe: Recipe, hardware: str, gpus: int, mfu: float, price: float | None) -> str:
    """Return memory, time and cost on GPUs, for copies of the model (DDP) and for one in shards (FSDP2)."""
    peak, size = HARDWARE[hardware]
    rows = max(1, recipe.config.batch_rows // gpus)
    ways = [("one GPU" if gpus == 1 else "DDP", 1)] + ([("FSDP2", gpus)] if gpus > 1 else [])
    lines, bf16 = [], recipe.config.precision != "fp32"
    small = keeps_whole_gradient(count_parameters(recipe.model)[0], size)
    for name, shards in ways:

        def needed(at_once: int, shards: int = shards) -> Memory:
            return memory_of(recipe, at_once, bf16, shards, whole_gradient=shards > 1 and at_once < rows and small)

        fits = largest_micro_batch(needed, rows, USABLE * size)
        lines.append(f"{name:12} " + describe_memory(needed(fits or 1), fits, size))
    speed = gpus * peak * mfu / flops_per_token(recipe.model, recipe.config.row_tokens)
    lines.append(describe_time(recipe.tokens, speed, gpus, price, f"reckoned at {mfu:.0%} of the peak"))
    return "\n".join(lines)


def plan_for_this_machine(recipe: Recipe, price: float | None) -> str:
    """Return memory, and the time as measured with the micro-batch that fits, in each precision that is native."""
    precision, program = resolve_precision(recipe.config.precision), 0
    bf16 = precision == "bf16"
    size = float(memory_of_device(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")))
    if not torch.cuda.is_available():
        program = peak_resident_bytes()
    rows = recipe.config.micro_batch_size or recipe.config.batch_rows
    fits = largest_micro_batch(lambda n: memory_of(recipe, n, bf16, program=program), rows, USABLE * size)
    memory = describe_memory(memory_of(recipe, fits or 1, bf16, program=program), fits, size)
    if not fits:
        return f"here         {memory}"
    speed, how = measure(recipe, fits, precision), "measured"
    if torch.cuda.is_available():
        mfu = utilisation_of(torch.device("cuda"), 1, speed, recipe.model, recipe.config.row_tokens)
        how += f", {mfu:.1%} of the peak" if mfu is not None else ""
    lines = [f"here         {memory}", describe_time(recipe.tokens, speed, 1, price, how)]
    return "\n".join([*lines, f"precision    {compare_precisions(recipe, fits, precision, speed)}"])


def compare_precisions(recipe: Recipe, rows: int, precision: Literal["fp32", "bf16"], speed: float) -> str:
    """Say in which precision the recipe trains here, and where both are native how fast the other one is."""
    asked = f"{precision}, as the recipe has it" if recipe.config.precision != "auto" else f"auto is {precision} here"
    if resolve_precision("auto") == "fp32":
        slow = ", which is emulated here and slow" if precision == "bf16" else "; bf16 would be emulated"
        return asked + slow
    other: Literal["fp32", "bf16"] = "fp32" if precision == "bf16" else "bf16"
    return f"{asked}; {other} is {measure(recipe, rows, other) / speed:.2f} times as fast (measured)"


def peak_resident_bytes() -> int:
    """Return the most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_memory(memory: Memory, fits: int, size: float) -> str:
    """Return the parts in GB, and the micro-batch they belong to."""
    parts = vars(memory).copy()
    instead = max(("evaluation", "update"), key=lambda name: parts[name])
    for name in ("evaluation", "update"):
        # These take the place of activations and loss, whose memory is free by then.
        if name != instead or parts[name] <= memory.activations + memory.loss:
            del parts[name]
    listed = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items() if value)
    head = f"{fits} rows at once fit" if fits else "not even one row at once fits"
    return f"{head} into {size / 1e9:.0f} GB: {memory.total / 1e9:.2f} GB ({listed})"


def describe_time(tokens: int, tokens_per_s: float, gpus: int, price: float | None, how: str) -> str:
    """Return speed, duration and cost."""
    hours = tokens / tokens_per_s / 3600
    length = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    cost = f"{hours * gpus * price:,.2f} dollars" if price is not None else "give --price for the cost"
    return f"time         {length} at {tokens_per_s:,.0f} tokens/s ({how}); {hours * gpus:.1f} device hours, {cost}"


def measure(recipe: Recipe, rows: int, precision: Literal["fp32", "bf16"]) -> float:
    """Return the tokens that training takes in a second on this machine, from a few steps on random tokens."""
    config = replace(recipe.config, batch_rows=rows, micro_batch_size=rows, pack_documents=False)
    config.max_steps = max(1, recipe.tokens // config.step_tokens)  # the same work in all, by which it is compiled
    vocab_size, length = recipe.model.vocab_size, (rows + 4) * config.row_tokens * 2
    random = np.random.default_rng(0).integers(0, vocab_size, length, dtype=np.uint32)
    shards = Shards(random, np.array([0]), length, vocab_size)
    windows = Windows(shards, config.row_tokens, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        model = ScratchForCausalLM(recipe.model)
        trainer = PretrainingRun(config, make_accelerator(precision), Path(folder), model, shards)
        seconds = []
        for _ in range(MEASURED_STEPS):
            started = time.perf_counter()
            trainer.train_step(windows)
            seconds.append(time.perf_counter() - started)
    return rows * config.row_tokens / statistics.median(seconds[1:])
