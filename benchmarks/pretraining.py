"""Speed and memory of pretraining steps beside stock transformers' Qwen3 and nanoGPT, at equal sizes.

    python -m benchmarks.pretraining speed [--nanogpt CLONE]
    python -m benchmarks.pretraining memory [--nanogpt CLONE]
    python -m benchmarks.pretraining overhead

Speed: one step of each contender in turn, on the same tokens, again and again; the table gives medians and the ratio
to ours of each round. Memory: each contender in a process of its own, which reports its peak. A step is forward,
backward, clipping and AdamW. nanoGPT is no package: give the path of a clone.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.engine.device import resolve_precision
from training.engine.loss import PretrainingLoss
from training.engine.optimizer import build_optimizers
from training.engine.parallel import compile_layers

Step = Callable[[torch.Tensor], None]


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "overhead"])
    parser.add_argument("--nanogpt", metavar="CLONE", help="folder of a clone of nanoGPT")
    parser.add_argument("--hidden_size", type=int, default=128, help="width (128)")
    parser.add_argument("--num_hidden_layers", type=int, default=4, help="layers (4)")
    parser.add_argument("--num_attention_heads", type=int, default=4, help="heads (4)")
    parser.add_argument("--vocab_size", type=int, help="1024 for speed and 32768 for memory if not given")
    parser.add_argument("--rows", type=int, default=16, help="sequences of a step (16)")
    parser.add_argument("--context", type=int, default=128, help="tokens of a sequence (128)")
    parser.add_argument("--rounds", type=int, default=30, help="speed: steps of each contender that count (30)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of all contenders")
    parser.add_argument("--compiled", action="store_true", help="all of them by torch.compile, ours layer by layer")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.precision = resolve_precision(arguments.precision)
    arguments.vocab_size = arguments.vocab_size or (1024 if arguments.what == "speed" else 32768)
    if arguments.only:
        print(json.dumps(peak(arguments)))
    else:
        {"speed": speed, "memory": memory, "overhead": overhead}[arguments.what](arguments)


def contenders(arguments: argparse.Namespace) -> dict[str, Callable[[argparse.Namespace], Step]]:
    """Return what makes a step of each contender, ours first."""
    all_ = {"hf_scratch": ours, "transformers Qwen3": qwen3, "nanoGPT": nanogpt}
    return all_ if arguments.nanogpt else dict(list(all_.items())[:2])


def config(arguments: argparse.Namespace) -> ScratchConfig:
    """Return the common size: three MLP matrices with as many weights as nanoGPT's two of four times the width."""
    return ScratchConfig(
        vocab_size=arguments.vocab_size,
        max_position_embeddings=arguments.context,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=math.ceil(arguments.hidden_size * 8 / 3 / 8) * 8,
    )


def ours(arguments: argparse.Namespace) -> Step:
    """A step as training.pretrain takes it."""
    model = ScratchForCausalLM(config(arguments)).to(device())
    loss = PretrainingLoss(model, arguments.compiled)
    if arguments.compiled:
        compile_layers(model)
    optimizers = build_optimizers(model, "adamw", 1e-3, 0.1, (0.9, 0.95))

    def total(ids: torch.Tensor) -> torch.Tensor:
        return loss(input_ids=ids[:, :-1], labels=ids[:, 1:], num_items=ids[:, 1:].numel())

    return step(arguments, model, total, optimizers)


def qwen3(arguments: argparse.Namespace) -> Step:
    """The same maths in stock transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    stock = {key: value for key, value in config(arguments).to_dict().items() if key not in ("model_type", "auto_map")}
    model = Qwen3ForCausalLM(Qwen3Config(**stock)).to(device())
    if arguments.compiled:
        model.compile(dynamic=False)
    optimizers = build_optimizers(model, "adamw", 1e-3, 0.1, (0.9, 0.95))

    def loss(ids: torch.Tensor) -> torch.Tensor:
        # The same tokens and targets as the others: left to itself, it shifts the labels of one token more.
        given = ids[:, :-1]
        return model(input_ids=given, labels=given, shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss

    return step(arguments, model, loss, optimizers)


def nanogpt(arguments: argparse.Namespace) -> Step:
    """nanoGPT's model and optimizer of the same width, depth and MLP parameters."""
    sys.path.append(arguments.nanogpt)
    from model import GPT, GPTConfig

    sizes = GPTConfig(
        vocab_size=arguments.vocab_size,
        block_size=arguments.context,
        n_layer=arguments.num_hidden_layers,
        n_head=arguments.num_attention_heads,
        n_embd=arguments.hidden_size,
        bias=False,
    )
    model = GPT(sizes).to(device())
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device().type)
    if arguments.compiled:
        model.compile(dynamic=False)
    return step(arguments, model, lambda ids: model(ids[:, :-1], ids[:, 1:].contiguous())[1], [optimizer])


def step(
    arguments: argparse.Namespace,
    model: torch.nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> Step:
    """Return one training step on token ids (rows, context + 1)."""
    autocast = torch.autocast(device().type, dtype=torch.bfloat16, enabled=arguments.precision == "bf16")

    def take(ids: torch.Tensor) -> None:
        model.zero_grad(set_to_none=True)
        with autocast:
            value = loss(ids)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    return take


def device() -> torch.device:
    """Return the accelerator, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def tokens(arguments: argparse.Namespace, seed: int) -> torch.Tensor:
    """Return random token ids (rows, context + 1)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (arguments.rows, arguments.context + 1)
    return torch.randint(0, arguments.vocab_size, shape, generator=generator).to(device())


def speed(arguments: argparse.Namespace) -> None:
    """Print tokens a second of each contender, and how many times as fast ours is."""
    steps = {name: make(arguments) for name, make in contenders(arguments).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(arguments.rounds + 3):
        ids = tokens(arguments, round_)
        for name, take in steps.items():
            started = time.perf_counter()
            take(ids)
            if device().type != "cpu":
                torch.accelerator.synchronize()
            if round_ >= 3:  # the first steps allocate
                seconds[name].append(time.perf_counter() - started)
    count = arguments.rows * arguments.context
    print(
        f"\n{arguments.num_hidden_layers} layers of {arguments.hidden_size}, steps of {count:,} tokens, "
        f"vocabulary {arguments.vocab_size:,}, "
        f"{torch.get_num_threads()} threads, {device()}, {arguments.precision}"
        f"{', compiled' if arguments.compiled else ''}"
    )
    print("| | tokens/s, median | ours is times as fast, median (quartiles) |\n| --- | ---: | ---: |")
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles([t / o for t, o in zip(times, first, strict=True)], n=4)
        print(f"| {name} | {count / statistics.median(times):,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of each contender's process, and above what it held before the model was made."""
    print(f"\nsteps of {arguments.rows * arguments.context:,} tokens, vocabulary {arguments.vocab_size:,}")
    print(
        "| | peak MiB of the process | of it above the imports | of theirs, ours takes |\n| --- | ---: | ---: | ---: |"
    )
    found = {}
    for name in contenders(arguments):
        command = [sys.executable, "-m", "benchmarks.pretraining", *sys.argv[1:], "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    mine = next(iter(found.values()))
    for name, value in found.items():
        ratio = mine["above"] / value["above"]
        print(f"| {name} | {value['peak']:,.0f} | {value['above']:,.0f} | {ratio:.0%} |")


def peak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take three steps of one contender in this process and return its peak in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    take = contenders(arguments)[arguments.only](arguments)
    for seed in range(3):
        take(tokens(arguments, seed))
    if device().type != "cpu":
        used = torch.cuda.max_memory_allocated() / 2**20
        return {"peak": used, "above": used}
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": highest / 1024, "above": (highest - before) / 1024}


def overhead(arguments: argparse.Namespace) -> None:
    """Print what reading rows and the log take of a run's time, of which probe, evaluation and saving are no part."""
    from training import prepare_data, pretrain, train_tokenizer
    from training.engine.loop import PretrainingRun

    steps = 2 * arguments.rounds
    seconds: dict[str, float] = {}

    def timed(name: str) -> Callable[..., Any]:
        method = getattr(PretrainingRun, name)

        def call(*given: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*given)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

        return call

    once = ("find_micro_batch", "evaluate", "save")
    for name in ("loop", "train_step", "micro_batches", *once):
        setattr(PretrainingRun, name, timed(name))
    recipe = Path(train_tokenizer.__file__).parent / "recipes" / "quickstart"
    with tempfile.TemporaryDirectory() as run:
        inputs = ["--tokenizer", f"{run}/tokenizer"]
        train_tokenizer.main(["--config", str(recipe / "tokenizer.yaml"), "--output_dir", f"{run}/tokenizer"])
        few = ["--num_stories", "2000"]
        prepare_data.main(["--config", str(recipe / "data.yaml"), "--output_dir", f"{run}/data", *inputs, *few])
        settings = ["--config", str(recipe / "pretrain.yaml"), "--max_steps", str(steps), "--eval_steps", str(steps)]
        pretrain.main([*settings, "--data", f"{run}/data", "--output_dir", f"{run}/pretrain", *inputs])
    total = seconds["loop"] - sum(seconds[name] for name in once)
    print(f"\n{steps} steps of the recipe quickstart, {total / steps * 1000:.0f} ms a step, {device()}")
    print("| | of a step |\n| --- | ---: |")
    print(f"| reading rows | {seconds['micro_batches'] / total:.2%} |")
    print(f"| log, progress bar and all else outside of the step | {1 - seconds['train_step'] / total:.2%} |")


if __name__ == "__main__":
    main()
