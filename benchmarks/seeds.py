"""The whole quickstart for many seeds: what a newcomer may get, the worst one first.

    python -m benchmarks.seeds --seeds 0 1 2 3 4 5 6 7 8 9 --precision fp32 --output_dir runs/seeds
    python -m benchmarks.seeds --output_dir runs/seeds --table

Each run is the recipe as it stands, but for its seed and precision, from the tokenizer to the release. `--at_once 2`
runs two side by side on a thread each. Killed, the same command goes on. `results.json` has every run; the table has
each figure's worst, median and best seed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "training" / "recipes" / "quickstart"
STAGES = ("tokenizer", "data", "pretrain", "sft", "dpo", "eval", "release")
SEEDED = ("tokenizer", "data", "pretrain", "sft", "dpo")
TRAINED = ("pretrain", "sft", "dpo")
RATES = (
    ("stories", "followed", "Instruction followed"),
    ("stories", "followed_sampled", "Instruction followed, sampled"),
    ("stories", "happy", "Preferred ending, sampled"),
    ("stories", "ended", "Answer ends by itself"),
    ("greedy", "questions", "Questions answered exactly"),
    ("sampled", "questions", "Questions answered exactly, sampled"),
    ("greedy", "again", "Other ending"),
    ("greedy", "next", "Next story"),
    ("greedy", "open", "Open request"),
    ("greedy", "small talk", "Honest where no story was asked for"),
    ("sampled", "small talk", "Honest where no story was asked for, sampled"),
)


def main() -> None:
    """Run the seeds that are not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--at_once", type=int, default=1, help="runs side by side, with a thread each if more than one"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--table", action="store_true", help="print the table of what is done and run nothing")
    arguments = parser.parse_args()
    arguments.output_dir = arguments.output_dir.resolve()
    if not arguments.table:
        with ThreadPoolExecutor(arguments.at_once) as pool:
            list(pool.map(lambda seed: run(arguments, seed), arguments.seeds))
    found = sorted(read_runs(arguments.output_dir), key=lambda one: (one["precision"], one["seed"]))
    (arguments.output_dir / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


def run(arguments: argparse.Namespace, seed: int) -> None:
    """Run the recipe with one seed, and keep of it what the table needs."""
    folder = arguments.output_dir / f"{arguments.precision}-{seed}"
    recipe = folder / "recipe"
    recipe.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        settings = yaml.safe_load((RECIPE / f"{stage}.yaml").read_text(encoding="utf-8"))
        settings |= {"seed": seed} if stage in SEEDED else {}
        settings |= {"precision": arguments.precision} if stage in TRAINED else {}
        (recipe / f"{stage}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    threads = {"OMP_NUM_THREADS": "1"} if arguments.at_once > 1 else {}
    started = time.time()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        line = [sys.executable, "-m", "training.run", str(recipe), "--output_dir", str(folder / "run")]
        subprocess.run(line, check=True, stdout=log, stderr=log, cwd=ROOT, env=os.environ | threads)
    print(f"{arguments.precision}, seed {seed}: {time.time() - started:.0f} s", flush=True)
    for shard in (folder / "run" / "data").glob("*.bin"):
        shard.unlink()


def read_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield of each run that has ended its seed, precision, time and results."""
    for path in folder.glob("*/run/eval/results.json"):
        files = {stage: path.parents[1] / stage / "stage.json" for stage in STAGES}
        records = {stage: json.loads(file.read_text()) for stage, file in files.items() if file.exists()}
        precision, _, seed = path.parents[2].name.partition("-")
        yield {
            "seed": int(seed),
            "precision": precision,
            "seconds": {stage: record["seconds"] for stage, record in records.items()},
            "machine": records["pretrain"]["machine"],
            "commits": {stage: record["commit"] for stage, record in records.items()},
            "models": {name: rates_of(model) for name, model in json.loads(path.read_text())["models"].items()},
        }


def rates_of(model: dict[str, Any]) -> dict[str, Any]:
    """Return bits per byte and every rate of a model's results."""
    groups = {"stories": model["stories"], "parts": model["stories"]["parts"], **model["turns"]}
    rates = {
        group: {name: one["rate"] for name, one in found.items() if "rate" in one} for group, found in groups.items()
    }
    return {"bits_per_byte": model["text"]["bits_per_byte"]} | rates


def table(found: list[dict[str, Any]]) -> str:
    """Return worst, median and best of every figure, a block for each precision, and all seeds after SFT and DPO."""
    lines = []
    for precision in sorted({one["precision"] for one in found}):
        runs = [one for one in found if one["precision"] == precision]
        seconds = [sum(one["seconds"].values()) for one in runs]
        lines += [
            f"### {precision}, {len(runs)} seeds",
            f"Stages in {statistics.median(seconds):.0f} s ({min(seconds):.0f} to {max(seconds):.0f}).",
            "| | after SFT: worst | median | best | after DPO: worst | median | best |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for kind, key, title in RATES:
            cells = []
            for model in ("sft", "dpo"):
                rates = [100 * one["models"][model][kind][key] for one in runs]
                cells += [f"{min(rates):.1f} %", f"{statistics.median(rates):.1f} %", f"{max(rates):.1f} %"]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines += [
            "",
            "| seed | bits per byte: base, SFT, DPO | followed: SFT, DPO | sampled | preferred | questions |",
        ]
        lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
        for one in runs:
            aligned = [one["models"][name] for name in ("sft", "dpo")]
            bits = ", ".join(f"{model['bits_per_byte']:.4f}" for model in one["models"].values())
            columns = [("stories", "followed"), ("stories", "followed_sampled"), ("stories", "happy")]
            cells = [
                ", ".join(f"{100 * model[kind][key]:.1f}" for model in aligned)
                for kind, key in [*columns, ("greedy", "questions")]
            ]
            lines.append(f"| {one['seed']} | {bits} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
