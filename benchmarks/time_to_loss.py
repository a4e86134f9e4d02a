"""Time to a held-out loss on TinyShakespeare: the recipe `shakespeare` beside nanoGPT's recipe for a CPU.

    python -m benchmarks.time_to_loss tinyshakespeare.txt --nanogpt CLONE --output_dir runs/time_to_loss

nanoGPT trains with the flags that its README gives for a CPU. Its time is that of its process less the time of the
same process with one step, so start-up and evaluation do not count; ours is `time_s`, training steps alone. Both are
measured on the whole last tenth of the text, in bits a byte, which characters of this text are.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

FLAGS = (
    "--device=cpu --compile=False --eval_iters=1 --log_interval=500 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --lr_decay_iters=2000 --dropout=0.0"
).split()
GOALS = (2.72, 2.40, 2.25)  # bits per byte; nanoGPT's recipe ends near the first


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="the TinyShakespeare file")
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", required=True, help="folder of a clone of nanoGPT")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/time_to_loss"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of ours (3)")
    arguments = parser.parse_args()
    seconds, theirs = run_nanogpt(arguments.text.resolve(), arguments.nanogpt, arguments.output_dir.resolve())
    print(f"\nnanoGPT: {theirs:.3f} bits per byte after {seconds:.0f} s and 2,000 steps", flush=True)
    curves = [run_ours(arguments.text, arguments.output_dir, seed) for seed in range(arguments.seeds)]
    print(f"\n| bits per byte | ours, seconds: mean of {len(curves)} seeds (range) | of nanoGPT's {seconds:.0f} s |")
    print("| ---: | ---: | ---: |")
    for goal in GOALS:
        times = [next((t for t, bits in curve if bits <= goal), math.inf) for curve in curves]
        mean = statistics.fmean(times)
        print(f"| {goal:.2f} | {mean:.0f} ({min(times):.0f} to {max(times):.0f}) | {mean / seconds:.2f} |")
    ends = [curve[-1] for curve in curves]
    print(f"\nours at the end: {', '.join(f'{bits:.3f} bits per byte after {t:.0f} s' for t, bits in ends)}")


def run_nanogpt(text: Path, clone: Path, folder: Path) -> tuple[float, float]:
    """Train nanoGPT; return seconds of training and bits per byte."""
    home = folder / "nanogpt"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(clone, home)
    shutil.copy(text, home / "data" / "shakespeare_char" / "input.txt")
    subprocess.run([sys.executable, "data/shakespeare_char/prepare.py"], cwd=home, check=True)

    def train(steps: int) -> float:
        started = time.perf_counter()
        line = [sys.executable, "train.py", "config/train_shakespeare_char.py", *FLAGS, f"--max_iters={steps}"]
        subprocess.run([*line, f"--eval_interval={steps}"], cwd=home, check=True)
        return time.perf_counter() - started

    start_up = train(1)
    seconds = train(2000) - start_up
    return seconds, nanogpt_bits(home)


@torch.no_grad()
def nanogpt_bits(home: Path) -> float:
    """Return bits per byte on all of its validation text, each character from up to 64 before it and at least 32."""
    sys.path.append(str(home))
    from model import GPT, GPTConfig

    saved = torch.load(home / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    ids = np.fromfile(home / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16).astype(np.int64)
    nats, count, context, stride = 0.0, 0, saved["model_args"]["block_size"], 32
    for start in range(0, len(ids) - context - 1, stride):
        window = torch.from_numpy(ids[start : start + context + 1])
        logits = model(window[None, :-1], window[None, 1:])[0]
        new = slice(0 if start == 0 else context - stride, None)
        losses = torch.nn.functional.cross_entropy(logits[0, new], window[1:][new], reduction="sum")
        nats, count = nats + losses.item(), count + len(window[1:][new])
    return nats / count / math.log(2)


def run_ours(text: Path, folder: Path, seed: int) -> list[tuple[float, float]]:
    """Train the recipe; return (seconds, bits per byte) of each evaluation."""
    recipe, run = Path(__file__).parent.parent / "training" / "recipes" / "shakespeare", folder / f"seed-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    stages = {
        "tokenizer": ["training.train_tokenizer", "--files", str(text)],
        "data": ["training.prepare_data", "--files", str(text), "--tokenizer", str(run / "tokenizer")],
        "pretrain": [
            *("training.pretrain", "--data", str(run / "data"), "--tokenizer", str(run / "tokenizer")),
            *("--seed", str(seed), "--eval_steps", "20", "--save_steps", "500"),
        ],
    }
    for name, (module, *inputs) in stages.items():
        line = [
            sys.executable,
            "-m",
            module,
            "--config",
            str(recipe / f"{name}.yaml"),
            "--output_dir",
            str(run / name),
        ]
        subprocess.run([*line, *inputs], check=True, env=os.environ | {"PYTHONPATH": str(recipe.parents[2])})
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [(line["time_s"], line["val_bpb"]) for line in lines if line["val_bpb"] is not None]


if __name__ == "__main__":
    main()
