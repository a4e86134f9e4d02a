"""Pretraining with and without initial weights under which attention copies, seed by seed.

    python -m benchmarks.copying training/recipes/quickstart --output_dir runs/copying/stories
    python -m benchmarks.copying training/recipes/shakespeare --files tinyshakespeare.txt \\
        --output_dir runs/copying/text

Everything but `copy_strength` and the seed is the recipe's. Each pair of runs has the same seed, data and order of
rows. `results.json` has every run; the table has each seed, and the exact p of the paired differences.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.evaluation.statistics import sign_flip

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="folder with tokenizer.yaml, data.yaml and pretrain.yaml")
    parser.add_argument("--files", nargs="+", default=[], help="text files of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.02], help="the first is compared with")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--at_once", type=int, default=1, help="runs side by side, with a thread each if more than one"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of pretraining")
    arguments = parser.parse_args()
    folder = arguments.output_dir.resolve()
    files = ["--files", *(str(Path(file).resolve()) for file in arguments.files)] if arguments.files else []
    stage(arguments, "train_tokenizer", "tokenizer", folder / "tokenizer", *files)
    stage(arguments, "prepare_data", "data", folder / "data", "--tokenizer", str(folder / "tokenizer"), *files)
    pairs = [(seed, strength) for seed in arguments.seeds for strength in arguments.strengths]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        curves = list(pool.map(lambda pair: pretrain(arguments, folder, *pair), pairs))
    found = [
        {"seed": seed, "copy_strength": strength, "precision": arguments.precision, "val_bpb": curve}
        for (seed, strength), curve in zip(pairs, curves, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(dict(zip(pairs, curves, strict=True)), arguments.seeds, arguments.strengths))


def pretrain(arguments: argparse.Namespace, folder: Path, seed: int, strength: float) -> dict[int, float]:
    """Train once; return bits per byte by step."""
    run = folder / f"{arguments.precision}-{seed}-{strength:g}"
    inputs = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer"), "--seed", str(seed)]
    inputs += ["--copy_strength", str(strength), "--precision", arguments.precision]
    inputs += [word for setting in arguments.set for word in f"--{setting}".split("=", 1)]
    stage(arguments, "pretrain", "pretrain", run, *inputs)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["val_bpb"] for line in lines if line["val_bpb"] is not None}


def stage(arguments: argparse.Namespace, module: str, name: str, output: Path, *inputs: str) -> None:
    """Run a stage of the recipe as its own process, unless it is done."""
    config = (arguments.recipe / f"{name}.yaml").resolve()
    line = [sys.executable, "-m", f"training.{module}", "--config", str(config), "--output_dir", str(output), *inputs]
    threads = {"OMP_NUM_THREADS": "1"} if arguments.at_once > 1 else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(output.name + ".log").open("w", encoding="utf-8") as log:
        subprocess.run(line, check=True, stdout=log, stderr=log, cwd=ROOT, env=os.environ | threads)


def table(curves: dict[tuple[int, float], dict[int, float]], seeds: list[int], strengths: list[float]) -> str:
    """Return the bits per byte at the end of each run, and how strengths differ from the first one."""
    ends = {pair: list(curve.values())[-1] for pair, curve in curves.items()}
    lines = ["| seed | " + " | ".join(f"{strength:g}" for strength in strengths) + " |"]
    lines.append("| ---: |" + " ---: |" * len(strengths))
    lines += [f"| {seed} | " + " | ".join(f"{ends[seed, one]:.4f}" for one in strengths) + " |" for seed in seeds]
    columns = [[ends[seed, strength] for seed in seeds] for strength in strengths]
    lines.append("| mean | " + " | ".join(f"{statistics.fmean(column):.4f}" for column in columns) + " |")
    lines.append("| worst | " + " | ".join(f"{max(column):.4f}" for column in columns) + " |")
    for strength, column in zip(strengths[1:], columns[1:], strict=True):
        differences = [new - old for old, new in zip(columns[0], column, strict=True)]
        lines.append(
            f"\n{strength:g} against {strengths[0]:g}: {statistics.fmean(differences):+.4f} on average "
            f"({min(differences):+.4f} to {max(differences):+.4f}), p = {sign_flip(differences):.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
