"""How fast one answer is decoded on this machine, by four engines in turns.

    python -m benchmarks.decode runs/quickstart/release/model
    python -m benchmarks.decode runs/quickstart/release/model --threads 2 --output runs/benchmarks/decode.json

`stock` is transformers' `generate`, `fast` is `hf_scratch/fast_generate.py`, `compiled` is stock with a static cache
and a compiled step, `llama.cpp` reads a GGUF file in float32. All decode the same prompt greedily to the same length,
in turns, so that a busy machine slows all of them. The tokens of `fast` must be stock's; for the others is said how
many are: llama.cpp never takes an end token, which the others do. Engines that are not installed are left out;
`compiled` wants a C++ compiler, `llama.cpp` the extra `export`.
"""

import argparse
import contextlib
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import CompileConfig, GenerationMixin

from hf_scratch import encode_prompt
from hf_scratch.export.original import Original, load_original
from hf_scratch.fast_generate import can_decode, generate
from hf_scratch.hub.client import find_folder

PROMPT = "Tell me a story about a fox named Pip who lost a red kite in the forest."
Engine = Callable[[], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of a Scratch or Qwen3 model.")
    parser.add_argument("--tokens", type=int, default=200, help="Length of the answer.")
    parser.add_argument("--rounds", type=int, default=10, help="Answers of each engine.")
    parser.add_argument("--threads", type=int, default=0, help="Threads of torch; 0 leaves it its own number.")
    parser.add_argument("--output", type=Path, help="JSON file of everything measured.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    original = load_original(find_folder(options.model, "main", Path(HF_HUB_CACHE)), None)
    model = original.model.float()
    if not can_decode(model):
        parser.error(f"{options.model} is not a dense Scratch or Qwen3 model; both engines would be the stock one.")
    ids = encode_prompt(original.tokenizer, [{"role": "user", "content": PROMPT}])
    with contextlib.ExitStack() as stack:
        engines = own_engines(model, ids, options.tokens)
        if shutil.which("g++"):
            engines["compiled"] = compiled_engine(model, ids, options.tokens)
        with contextlib.suppress(ImportError):
            engines["llama.cpp"] = stack.enter_context(llama_engine(original, ids, options.tokens))
        report(model, options, len(ids), *measure(engines, options))


def own_engines(model: Any, ids: list[int], tokens: int) -> dict[str, Engine]:
    """Return stock and fast generation; both go on past an end token, to the same length."""
    model.generation_config.eos_token_id = None
    prompt, length = torch.tensor([ids]), {"max_new_tokens": tokens, "do_sample": False}
    return {
        "stock": lambda: GenerationMixin.generate(model, prompt, **length)[0, len(ids) :].tolist(),
        "fast": lambda: generate(prompt, model=model, **length)[0, len(ids) :].tolist(),
    }


def compiled_engine(model: Any, ids: list[int], tokens: int) -> Engine:
    """Return stock generation with a static cache, whose step torch.compile turns into C++ at the first call."""
    how = CompileConfig(mode="default")
    how._compile_all_devices = True  # transformers compiles for GPUs only
    length = {"max_new_tokens": tokens, "do_sample": False, "cache_implementation": "static", "compile_config": how}
    return lambda: GenerationMixin.generate(model, torch.tensor([ids]), **length)[0, len(ids) :].tolist()


@contextlib.contextmanager
def llama_engine(original: Original, ids: list[int], tokens: int) -> Iterator[Engine]:
    """Serve the model by llama.cpp in float32.

    Raises:
        ImportError: llama.cpp or what writes its files is not installed.
    """
    from hf_scratch.export.gguf import TYPES, ask, llama, write_file

    content = {"prompt": ids, "n_predict": tokens, "temperature": 0, "samplers": ["temperature"], "ignore_eos": True}
    content |= {"cache_prompt": False, "return_tokens": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_file(original, path, *TYPES["f32"])
        with llama(path, original.model.config.max_position_embeddings) as server:
            yield lambda: list(ask(server, "/completion", content)["tokens"])


def measure(engines: dict[str, Engine], options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return tokens per second of each round, and how many tokens from the first on are stock's."""
    answers = {name: run() for name, run in engines.items()}  # the first call of an engine prepares what it needs
    same = {name: agreeing(answers["stock"], answer) for name, answer in answers.items()}
    if same["fast"] < options.tokens:
        raise SystemExit("the fast engine gives other tokens than stock")
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, run in engines.items():
            started = time.perf_counter()
            count = len(run())
            speeds[name].append(count / (time.perf_counter() - started))
    return speeds, same


def agreeing(expected: list[int], found: list[int]) -> int:
    pairs = enumerate(zip(expected, found, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(expected), len(found)))


def report(
    model: torch.nn.Module,
    options: argparse.Namespace,
    prompt: int,
    speeds: dict[str, list[float]],
    same: dict[str, int],
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{parameters:,} parameters, {machine}")
    print(f"{prompt} tokens of prompt, {options.tokens} of answer, {options.rounds} interleaved rounds\n")
    print("| | tokens/s, median (range) | times as fast as stock, median of rounds (range) | stock's tokens |")
    print("| --- | ---: | ---: | ---: |")
    for name, found in speeds.items():
        ratios = [one / stock for stock, one in zip(speeds["stock"], found, strict=True)]
        print(
            f"| {name} | {statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f}) "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) | {same[name]} |"
        )
    if options.output:
        measured = {"parameters": parameters, "machine": machine, "prompt": prompt, "tokens": options.tokens}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measured | {"tokens_per_s": speeds, "same_tokens": same}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
