"""All that one GPU can say of this project, in one command, and a record of it.

    python -m benchmarks.gpu --output runs/benchmarks/gpu.json           at most 8 minutes
    python -m benchmarks.gpu --quick                                     about a minute
    python -m benchmarks.gpu --device cpu --quick                        tiny sizes: the path, not the speed

Model FLOPs utilisation at 124M and 350M parameters with and without compilation, packed documents by each kernel of
attention, what Muon takes of a step, evaluation, decoding, the plan's memory beside the peak that was used, a real
shortage of memory, and a run that is resumed. A part that fails is noted as failed, with its reason, and the others
go on; so does what the time limit leaves out.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_scratch import ScratchForCausalLM
from hf_scratch.fast_generate import generate
from training.engine.batches import PackedDocuments, Windows
from training.engine.config import PretrainConfig
from training.engine.cost import flops_per_token, largest_micro_batch, training_memory
from training.engine.device import join_processes, resolve_precision
from training.engine.estimate import USABLE, Recipe, memory_of
from training.engine.gpus import peak_flops
from training.engine.initial_weights import model_config
from training.engine.loop import PretrainingRun
from training.engine.parallel import make_accelerator
from training.engine.token_shards import Shards
from training.stage.files import write_json
from training.stage.record import command, environment

LIMIT_S = 450.0  # no part begins later
Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A model to train, and rows at once that fit on a card of 80 GB."""

    name: str
    hidden: int
    layers: int
    heads: int
    rows: int
    context: int = 1024
    vocab_size: int = 50304


FULL = (Size("124M", 768, 12, 12, 64), Size("350M", 1024, 24, 16, 32))
TINY = (Size("tiny", 32, 2, 2, 4, 64, 300), Size("tiny, deeper", 32, 3, 2, 4, 64, 300))


@command
def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: in tiny sizes, with --quick")
    parser.add_argument("--quick", action="store_true", help="the smaller size and fewer steps")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gpu.json"), help="the record")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU here that torch can use; --device cpu --quick runs the same parts, tiny.")
    if options.device == "cpu" and not options.quick:
        raise ValueError("--device cpu tries the parts out in tiny sizes; give --quick too.")
    join_processes()
    sizes = TINY if options.device == "cpu" else FULL
    found = run_parts(parts(sizes[:1] if options.quick else sizes, 3 if options.quick else 8), time.monotonic())
    record = {"device": device_name(), **environment(), "quick": options.quick, "parts": found}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, record)
    print(f"the record is {options.output}")


def device() -> torch.device:
    """Return the GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Return what the card calls itself."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def parts(sizes: tuple[Size, ...], steps: int) -> dict[str, Callable[[], Result]]:
    """Return the parts by name, those first that say most."""
    found: dict[str, Callable[[], Result]] = {}
    on_gpu = device().type == "cuda"
    for size in sizes:
        for compiled in (True, False) if on_gpu else (False,):  # a CPU takes minutes to compile and says nothing of it
            how = "compiled" if compiled else "not compiled"
            found[f"{size.name}, {how}"] = lambda s=size, c=compiled: training(s, steps, compile=c)
    smallest = sizes[0]
    found["Muon"] = lambda: training(smallest, steps, compile=on_gpu, optimizer="muon")
    found["evaluation"] = lambda: evaluation(smallest)
    found["decoding"] = lambda: decoding(smallest, 16 * steps)
    for kernel in ("sdpa", "flex_attention"):
        if on_gpu or kernel == "sdpa":
            found[f"packed documents, {kernel}"] = lambda k=kernel: training(
                smallest, steps, compile=on_gpu, pack_documents=True, attn_implementation=k
            )
    found["resume"] = lambda: resumed(smallest)
    found["shortage of memory"] = lambda: shortage(smallest)
    return found


def run_parts(found: dict[str, Callable[[], Result]], started: float) -> dict[str, Result]:
    """Run one part after the other and print each; a failure is a result."""
    results: dict[str, Result] = {}
    for name, part in found.items():
        begun = time.monotonic()
        if begun - started > LIMIT_S:
            results[name] = {"left out": "the time is up"}
        else:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    results[name] = part()
            except Exception as error:  # whatever it is, the other parts are worth their minutes
                results[name] = {
                    "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                }
            results[name]["part_s"] = round(time.monotonic() - begun, 1)
            free()
        shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in results[name].items())  # fmt: skip
        print(f"{name}: {shown}", flush=True)
    return results


def free() -> None:
    """Forget what the part before has compiled, and its memory."""
    torch.compiler.reset()
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def settings(size: Size, folder: str, **changes: Any) -> PretrainConfig:
    """Return the settings of a run of this size, one micro-batch a step."""
    given: dict[str, Any] = {
        "output_dir": folder, "data": ["-"], "tokenizer": "-", "hidden_size": size.hidden,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "context_length": size.context,
        "batch_rows": size.rows, "micro_batch_size": size.rows, "warmup_steps": 0, "learning_rate": 1e-4,
    }  # fmt: skip
    return PretrainConfig(**(given | changes))


def text(size: Size, rows: int) -> Shards:
    """Return random tokens in documents of about a third of a row."""
    random, length = np.random.default_rng(0), (rows + 4) * size.context * 2
    tokens = random.integers(0, size.vocab_size, length + 1, dtype=np.uint32)
    starts = np.unique(np.append(0, random.integers(0, length - 1, 3 * length // size.context)))
    return Shards(tokens, starts, length, size.vocab_size)


@contextlib.contextmanager
def a_run(size: Size, **changes: Any) -> Iterator[tuple[PretrainingRun, Windows | PackedDocuments]]:
    """Give a run that has not begun, and its rows."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(size, folder, **changes)
        shards = text(size, config.batch_rows)
        model = ScratchForCausalLM(model_config(config, size.vocab_size))
        run = PretrainingRun(
            config, make_accelerator(resolve_precision(config.precision)), Path(folder), model, shards
        )
        kind = PackedDocuments if config.pack_documents else Windows
        yield run, kind(shards, size.context, 0)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long something takes until the device has done it."""
    started = time.perf_counter()
    work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def training(size: Size, steps: int, **changes: Any) -> Result:
    """Return speed, utilisation, time to compile, the optimizer's share, and memory beside the plan's."""
    with a_run(size, **changes) as (run, rows):
        first = seconds_of(lambda: run.train_step(rows))
        seconds = []
        for step in range(1, steps + 2):
            run.progress.step = step
            seconds.append(seconds_of(lambda: run.train_step(rows)))
        tokens = size.rows * size.context
        a_step = statistics.median(seconds[1:])
        optimizers = statistics.median(
            seconds_of(lambda: [optimizer.step() for optimizer in run.optimizers]) for _ in range(3)
        )
        found: Result = {"step_s": a_step, "tokens_per_s": tokens / a_step, "optimizer_share": optimizers / a_step}
        found["first_step_s"] = first
        if peak := peak_flops(device_name()):
            found["mfu"] = found["tokens_per_s"] * flops_per_token(run.unwrapped.config, size.context) / peak
        return found | memory(run, size)


def memory(run: PretrainingRun, size: Size) -> Result:
    """Return the peak of memory in GB, what the plan says, and how far it is off, as a share."""
    if device().type != "cuda":
        return {}
    config, used = run.config, torch.cuda.max_memory_allocated() / 1e9
    sizes = (run.unwrapped.config, size.rows, size.context, config.optimizer)
    planned = training_memory(*sizes, run.precision == "bf16", config.pack_documents)
    # No evaluation has run.
    total = replace(planned, evaluation=0).total / 1e9
    return {"peak_gb": used, "planned_gb": total, "plan_is_off_by": total / used - 1}


def evaluation(size: Size) -> Result:
    """Return how many held-out tokens are read a second."""
    with a_run(size) as (run, _):
        run.evaluate()
        return {"tokens_per_s": len(run.held_out.tokens) / seconds_of(run.evaluate)}


def decoding(size: Size, tokens: int) -> Result:
    """Return the tokens of one answer a second, by transformers and by the fast path, in bfloat16 on a GPU."""
    config = model_config(settings(size, "-"), size.vocab_size)
    model = ScratchForCausalLM(config).to(device()).eval()
    model = model.to(torch.bfloat16) if device().type == "cuda" else model
    prompt = torch.zeros(1, 8, dtype=torch.long, device=device())
    length = {"max_new_tokens": min(tokens, size.context - 8), "do_sample": False}
    model.generation_config.eos_token_id = None
    ways: dict[str, Callable[[], Any]] = {
        "transformers": lambda: super(ScratchForCausalLM, model).generate(prompt, **length),
        "fast": lambda: generate(prompt, model=model, **length),
    }
    found: Result = {}
    for name, way in ways.items():
        way()
        found[f"{name}_tokens_per_s"] = length["max_new_tokens"] / seconds_of(way)
    return found


def resumed(size: Size) -> Result:
    """Return how long saving and loading take, and how far the step after them is from the undisturbed one."""
    with a_run(size, compile=False, save_steps=1) as (run, rows):
        run.train_step(rows)
        run.progress.step = 1
        saved = seconds_of(run.save)
        expected = run.train_step(rows)[0]
        model = ScratchForCausalLM(run.unwrapped.config)
        other = PretrainingRun(run.config, run.accelerator, run.folder, model, run.held_out)
        loaded = seconds_of(other.resume)
        found = other.train_step(rows)[0]
        return {"save_s": saved, "load_s": loaded, "loss": expected, "loss_is_off_by": abs(found - expected)}


def shortage(size: Size) -> Result:
    """Return what fits when rows are given without end, as the probe finds it, and what a step then takes.

    On a CPU, whose memory others need, the rows are the ordinary ones and nothing is short.
    """
    rows = size.rows * 64 if device().type == "cuda" else size.rows
    with a_run(size, batch_rows=rows, micro_batch_size=0, compile=False) as (run, data):
        took = seconds_of(run.find_micro_batch)
        fits = run.progress.micro_batch_size
        run.config.batch_rows = fits
        run.train_step(data)
        found: Result = {"rows_asked_for": rows, "rows_that_fit": fits, "probe_s": took, "halved": fits < rows}
        recipe = Recipe(run.config, run.unwrapped.config)
        if device().type == "cuda":
            bf16, limit = run.precision == "bf16", USABLE * torch.cuda.get_device_properties(0).total_memory
            found["rows_planned"] = largest_micro_batch(lambda n: memory_of(recipe, n, bf16), rows, limit)
        return found


if __name__ == "__main__":
    main()
