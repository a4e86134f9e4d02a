"""Which size of model a time allows on this machine: several sizes trained for equal times, on the same text.

    python -m benchmarks.scaling training/recipes/english-1h --data runs/english-1h/data \\
        --tokenizer runs/english-1h/tokenizer --minutes 2 6 18 --output_dir runs/scaling

Each size first trains a few steps, which tells its speed; then it runs the number of steps that fit into each time,
with the recipe's schedule to its end. A parabola of held-out bits per byte over the logarithm of the size has the best
size of a time as its lowest point (arXiv:2203.15556, approach 2, with time in place of operations, because a small
model does fewer of them in a second), and a line through the best sizes tells that of a longer time. Killed, the same
command goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
HEAD = 64  # width of an attention head
SPEED_STEPS = 30


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="folder with a pretrain.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder of token shards")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer that made them")
    parser.add_argument("--sizes", nargs="+", default=["4x192", "6x256", "6x384", "8x512"], help="LAYERSxWIDTH")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 6, 18], help="of training steps alone")
    parser.add_argument("--aims", type=float, nargs="+", default=[60, 180, 480], help="minutes to tell the size of")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of pretraining")
    arguments = parser.parse_args()
    found = []
    for size in arguments.sizes:
        first, last = [line["time_s"] for line in train(arguments, size, "speed", SPEED_STEPS)][::2]
        step_seconds = (last - first) / (SPEED_STEPS * 2 // 3)
        for minutes in arguments.minutes:
            steps = max(1, round(60 * minutes / step_seconds))
            end = train(arguments, size, f"{minutes:g}-minutes", steps)[-1]
            found.append({"size": size, "minutes": minutes, "steps": steps, "parameters": parameters(arguments, size)})
            found[-1] |= {key: end[key] for key in ("tokens", "time_s", "val_bpb")}
            print(json.dumps(found[-1]), flush=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found, arguments.aims))


def run_folder(arguments: argparse.Namespace, size: str, name: str) -> Path:
    """Return where a run of a size is."""
    folder: Path = arguments.output_dir / f"{size}-{name}"
    return folder.resolve()


def train(arguments: argparse.Namespace, size: str, name: str, steps: int) -> list[dict[str, Any]]:
    """Train a size so many steps, unless it is done; return the lines of its log."""
    folder = run_folder(arguments, size, name)
    layers, width = map(int, size.split("x"))
    settings = {
        "data": arguments.data,
        "tokenizer": arguments.tokenizer,
        "output_dir": folder,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // HEAD,
        "max_steps": steps,
        # The run that tells the speed is logged three times; the others are scored at their end.
        "log_steps": steps // 3 if name == "speed" else 20,
        "eval_steps": steps,
    } | dict(setting.split("=", 1) for setting in arguments.set)
    line = [sys.executable, "-m", "training.pretrain", "--config", str(arguments.recipe / "pretrain.yaml")]
    line += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A run that is done is not run again because a later look at its speed gave a step more or less.
    if not (folder / "model").is_dir():
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            subprocess.run(line, check=True, stdout=log, stderr=log)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def parameters(arguments: argparse.Namespace, size: str) -> int:
    """Return the parameters of a size, embedding included."""
    record = json.loads((run_folder(arguments, size, "speed") / "stage.json").read_text(encoding="utf-8"))
    return int(record["metrics"]["parameters"])


def table(found: list[dict[str, Any]], aims: list[float]) -> str:
    """Return every run, the best size of each time, and what the line through them says of the longer times."""
    lines = ["| size | parameters | minutes | steps | tokens | bits per byte |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for one in found:
        columns = (one["size"], f"{one['parameters']:,}", f"{one['minutes']:g}", f"{one['steps']:,}")
        lines.append(f"| {' | '.join(columns)} | {one['tokens']:,} | {one['val_bpb']:.4f} |")
    best = {}
    for minutes in sorted({one["minutes"] for one in found}):
        runs = [one for one in found if one["minutes"] == minutes]
        sizes = np.log([one["parameters"] for one in runs])
        if len(runs) < 3:
            continue
        a, b, _ = np.polyfit(sizes, [one["val_bpb"] for one in runs], 2)
        lowest = -b / (2 * a)
        inside = a > 0 and sizes.min() <= lowest <= sizes.max()
        lines.append(
            f"{minutes:g} minutes: best at {np.exp(lowest):,.0f} parameters"
            if inside
            else f"{minutes:g} minutes: the lowest point is outside the sizes tried"
        )
        if inside:
            best[minutes] = lowest
    if len(best) >= 2:
        slope, start = np.polyfit(np.log(list(best)), list(best.values()), 1)
        lines.append(f"The best size grows with time to the power of {slope:.2f}:")
        lines += [f"{aim:g} minutes: {np.exp(start + slope * np.log(aim)):,.0f} parameters" for aim in aims]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
