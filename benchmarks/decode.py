"""How fast one answer is decoded on this machine: stock `generate` against `hf_scratch/fast_generate.py`.

    python -m benchmarks.decode runs/quickstart/release/model

Both decode the same prompt greedily to the same length, in turns, so that a busy machine slows both; the tokens must
be the same. Printed are medians, the range, the median of each round's ratio, and the ratio of the best rounds.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

from hf_scratch import encode_prompt
from hf_scratch.fast_generate import can_decode, generate

PROMPT = "Tell me a story about a fox named Pip who lost a red kite in the forest."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of a Scratch or Qwen3 model.")
    parser.add_argument("--tokens", type=int, default=200, help="Length of the answer.")
    parser.add_argument("--rounds", type=int, default=10, help="Answers of each engine.")
    parser.add_argument("--threads", type=int, default=0, help="Threads of torch; 0 leaves it its own number.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=True, dtype=torch.float32).eval()
    if not can_decode(model):
        parser.error(f"{options.model} is not a dense Scratch or Qwen3 model; both engines would be the stock one.")
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": PROMPT}])])
    model.generation_config.eos_token_id = None  # both go on to the same length
    length = {"max_new_tokens": options.tokens, "do_sample": False}
    engines: dict[str, Callable[[], torch.Tensor]] = {
        "stock": lambda: GenerationMixin.generate(model, ids, **length),
        "fast": lambda: generate(ids, model=model, **length),
    }
    if not torch.equal(engines["stock"](), engines["fast"]()):
        raise SystemExit("the two engines give different tokens")
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, run in engines.items():
            started = time.perf_counter()
            run()
            speeds[name].append(options.tokens / (time.perf_counter() - started))
    report(model, options, ids.shape[1], speeds)


def report(model: torch.nn.Module, options: argparse.Namespace, prompt: int, speeds: dict[str, list[float]]) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{parameters:,} parameters, {machine}")
    print(f"{prompt} tokens of prompt, {options.tokens} of answer, {options.rounds} rounds, the same tokens")
    for name, found in speeds.items():
        print(f"{name:5s} {statistics.median(found):7.0f} tokens/s  ({min(found):.0f} to {max(found):.0f})")
    ratios = [fast / stock for stock, fast in zip(speeds["stock"], speeds["fast"], strict=True)]
    print(f"ratio {statistics.median(ratios):7.1f}           ({min(ratios):.1f} to {max(ratios):.1f})")
    # On a machine that others use, the best round of each is the one that was disturbed least.
    print(f"best against best {max(speeds['fast']) / max(speeds['stock']):.1f}")


if __name__ == "__main__":
    main()
