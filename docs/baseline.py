"""The language model before attention, and what it reaches beside ours with as many weights in as much time.

    python -m docs.baseline --data runs/shakespeare/data --tokenizer runs/shakespeare/tokenizer \\
        --output_dir runs/baseline

Every kind gets the same shards, rows and schedule, and the same seconds of one processor core. Evaluations are on the
same held-out text and cost no time of the budget. Chapter 2 of the guide reads the record.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from docs.figures import axes
from docs.recurrent import RecurrentLM, count
from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.bits_per_byte import bits_per_byte
from training.engine.batches import Windows
from training.engine.optimizer import build_optimizers
from training.engine.token_shards import Shards, load_shards

KINDS = ("rnn", "gru", "lstm", "transformer")
ROWS, CONTEXT = 16, 128
PARTS = 5  # evaluations of a run
# The best of three rates for RNN and LSTM, tried with seed 0 for 120 steps; the GRU has the LSTM's, ours the recipe's.
RATES = {"rnn": 0.003, "gru": 0.02, "lstm": 0.02, "transformer": 0.005}


def transformer(vocab_size: int) -> ScratchForCausalLM:
    """Return our decoder in the sizes of the recipe `shakespeare`."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ScratchForCausalLM(ScratchConfig(vocab_size=vocab_size, max_position_embeddings=CONTEXT, **sizes))


def build(kind: str, vocab_size: int) -> nn.Module:
    """Return a model of the kind with as many weights as our decoder, but for a hundredth."""
    decoder = transformer(vocab_size)
    if kind == "transformer":
        return decoder
    width = next(w for w in range(8, 4096, 4) if count(RecurrentLM(kind, vocab_size, w)) >= 0.99 * count(decoder))
    return RecurrentLM(kind, vocab_size, width)


@dataclass(frozen=True)
class Point:
    """How good a model was after so much work."""

    seconds: float
    tokens: int
    bits_per_byte: float


def train(kind: str, seed: int, shards: Shards, held_out: Shards, seconds: float) -> list[Point]:
    """Train for `seconds` of one core and return the curve; the learning rate falls to 0 over this time."""
    torch.manual_seed(seed)
    model = build(kind, shards.vocab_size)
    rows = Windows(shards, CONTEXT, seed)
    name: Any = "muon" if kind == "transformer" else "adamw"  # as the recipe trains ours
    optimizers = build_optimizers(model, name, RATES[kind], weight_decay=0.1, betas=(0.9, 0.95))
    curve, used, step = [], 0.0, 0
    while used < seconds:
        started = time.process_time()
        done = used / seconds
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = RATES[kind] * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * done))
        batch = rows.batch(np.arange(step * ROWS, (step + 1) * ROWS))
        logits = model(input_ids=batch["input_ids"]).logits
        F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        step += 1
        used += time.process_time() - started
        if used >= seconds * (len(curve) + 1) / PARTS:
            curve.append(Point(round(used, 2), step * ROWS * CONTEXT, evaluate(model, held_out)))
    return curve


def evaluate(model: Any, held_out: Shards) -> float:
    """Return bits per byte of the held-out text."""
    text = (held_out.tokens, held_out.starts, held_out.num_bytes)
    return bits_per_byte(model, *text, CONTEXT, "cpu", stride=CONTEXT).bits_per_byte


def table(curves: dict[str, list[list[Point]]], sizes: dict[str, int]) -> list[str]:
    """Return the table of the record: the mean over seeds, lowest and highest in brackets."""
    lines = ["| | weights | tokens read | bits per byte |", "| --- | ---: | ---: | ---: |"]
    for kind, runs in curves.items():
        ends = [run[-1].bits_per_byte for run in runs]
        tokens = round(sum(run[-1].tokens for run in runs) / len(runs), -3)
        spread = f"{sum(ends) / len(ends):.3f} ({min(ends):.3f} to {max(ends):.3f})"
        lines.append(f"| {kind} | {sizes[kind]:,} | {tokens:,.0f} | {spread} |")
    return lines


def write(curves: dict[str, list[list[Point]]], folder: Path) -> None:
    """Write curves.json: seconds, tokens and bits per byte of each point, by kind and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    points = {
        kind: [[[p.seconds, p.tokens, round(p.bits_per_byte, 4)] for p in run] for run in runs]
        for kind, runs in curves.items()
    }
    (folder / "curves.json").write_text(json.dumps(points) + "\n", encoding="utf-8")


def draw(curves: dict[str, list[list[list[float]]]]) -> None:
    """Draw the curves of a `curves.json`, every seed, over time and over tokens."""
    over_time, over_tokens = axes(columns=2, sharey=True)
    for number, (kind, runs) in enumerate(curves.items()):
        for seed, run in enumerate(runs):
            seconds, tokens, bits = zip(*run, strict=True)
            style = {"color": f"C{number}", "label": kind if seed == 0 else None}
            over_time.plot(seconds, bits, marker=".", **style)
            over_tokens.plot([count / 1000 for count in tokens], bits, marker=".", **style)
    over_time.set(xlabel="seconds of one core", ylabel="bits per byte, held out")
    over_tokens.set(xlabel="thousand tokens read")
    over_time.legend(frameon=False)


def main() -> None:
    """Train every kind for every seed and write the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of token shards")
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer that made them")
    parser.add_argument("--output_dir", type=Path, required=True, help="where curves.json is written")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["rnn", "lstm", "transformer"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=30.0, help="of one core, for each run (30)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards, held_out = (load_shards(arguments.data, split) for split in ("train", "val"))
    if len(AutoTokenizer.from_pretrained(arguments.tokenizer)) != shards.vocab_size:
        parser.error(f"{arguments.tokenizer} has not the {shards.vocab_size} tokens of the shards; give their own.")
    curves: dict[str, list[list[Point]]] = {kind: [] for kind in arguments.kinds}
    for seed in arguments.seeds:  # in turns, so that other work on the machine falls on all kinds
        for kind in arguments.kinds:
            run = train(kind, seed, shards, held_out, arguments.seconds)
            curves[kind].append(run)
            print(f"seed {seed}, {kind}: {run[-1].bits_per_byte:.3f} bits per byte", flush=True)
            write(curves, arguments.output_dir)
    sizes = {kind: count(build(kind, shards.vocab_size)) for kind in arguments.kinds}
    print("\n".join(table(curves, sizes)))


if __name__ == "__main__":
    main()
