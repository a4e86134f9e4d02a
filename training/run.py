"""Run a recipe from raw text to a release folder: tokenizer, data, chat, pretrain, sft, dpo, grpo, eval, release.

    python -m training.run training/recipes/quickstart
    python -m training.run training/recipes/shakespeare --files tinyshakespeare.txt

Each stage is one command, which is printed and can be run by hand. A stage without a YAML file in the recipe is left
out; one whose settings and inputs did not change is skipped; one that was interrupted goes on where it was.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.stage.files import read_json
from training.stage.record import MEMORY, MODELS, command


@dataclass
class Step:
    """One stage of the pipeline: its name, which is also its folder and its YAML, its module and its inputs."""

    name: str
    module: str
    inputs: list[str]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="folder with one YAML file for each stage")
    parser.add_argument("--output_dir", type=Path, help="folder of the run; default runs/NAME_OF_THE_RECIPE")
    parser.add_argument("--files", nargs="+", default=[], help="text files or globs to learn from")
    parser.add_argument("--launch", type=Path, help="accelerate's file for pretraining, from training/launch")
    args = parser.parse_args(argv)
    if args.launch and not args.launch.is_file():
        raise ValueError(f"{args.launch} is not a file; take one of training/launch, or leave --launch out.")
    if not args.recipe.is_dir():
        known = sorted(path.name for path in (Path(__file__).parent / "recipes").iterdir())
        raise ValueError(f"{args.recipe} is not a recipe folder; there are {', '.join(known)} in training/recipes.")
    run = args.output_dir or Path("runs") / args.recipe.name
    plan = steps(args.recipe, run, args.files)
    started = time.time()
    for number, step in enumerate(plan, start=1):
        run_step(step, args.recipe, run, title=f"[{number}/{len(plan)}] {step.name}", launch=args.launch)
    print(f"\nAll {len(plan)} stages are done, {time.time() - started:.0f} s in this call.")


def steps(recipe: Path, run: Path, files: list[str]) -> list[Step]:
    """Return the recipe's stages with the inputs that each takes from the ones before."""
    present = {path.stem for path in recipe.glob("*.yaml")}
    made = {name: run / stage / "model" for name, stage in MODELS.items()}
    # A recipe may have only the later stages, of a run that has the earlier ones.
    models = [f"{name}={path}" for name, path in made.items() if MODELS[name] in present or path.is_dir()]
    text = ["--files", *files] if files else []
    tokenizer, data = str(run / "tokenizer"), str(run / "data")
    # The rows of the stage `chat` where the recipe has it, else what the stages' own recipes name.
    rows, pairs, questions = (
        [option, str(run / "chat" / name)] if "chat" in present else []
        for option, name in (("--data", "sft.jsonl"), ("--data", "dpo.jsonl"), ("--questions", "questions.jsonl"))
    )
    all_steps = [
        Step("tokenizer", "training.train_tokenizer", text),
        Step("data", "training.prepare_data", ["--tokenizer", tokenizer, *text]),
        Step("chat", "training.prepare_chat", ["--data", data, "--tokenizer", tokenizer]),
        Step("pretrain", "training.pretrain", ["--data", data, "--tokenizer", tokenizer]),
        Step("sft", "training.sft", ["--model", str(run / "pretrain/model"), "--replay", data, *rows]),
        Step("dpo", "training.dpo", ["--model", str(run / "sft/model"), *pairs]),
        Step("grpo", "training.grpo", ["--model", str(run / "sft/model")]),
        Step("eval", "training.eval_model", ["--data", data, *questions, "--models", *models]),
        Step("release", "training.release", ["--run", str(run)]),
    ]
    unknown = present - {step.name for step in all_steps}
    if unknown:
        raise ValueError(
            f"{recipe} holds {', '.join(sorted(unknown))}.yaml, which is no stage; "
            f"the stages are {', '.join(step.name for step in all_steps)}."
        )
    return [step for step in all_steps if step.name in present]


def run_step(step: Step, recipe: Path, run: Path, title: str, launch: Path | None = None) -> None:
    """Run one stage as its own process, so that it is the command that a user would type."""
    config, folder = str(recipe / f"{step.name}.yaml"), run / step.name
    line = [sys.executable, "-m", step.module, "--config", config, "--output_dir", str(folder), *step.inputs]
    if launch and step.name == "pretrain":
        line[1:1] = ["-m", "accelerate.commands.launch", "--config_file", str(launch)]
    print(f"\n{title}\n$ {shlex.join(['python', *line[1:]])}", flush=True)
    noted = read_json(folder / MEMORY)
    while (status := finish(line)) and noted != (noted := read_json(folder / MEMORY)):
        print(f"{title}: memory ran out on one of the processes; once more, with fewer rows at once", flush=True)
    if status:
        print(f"\n{title} did not finish; the same command skips what is done and goes on here.", file=sys.stderr)
        sys.exit(status)
    print(f"{title}: {read_json(folder / 'stage.json').get('seconds', 0):.0f} s")


def finish(line: list[str]) -> int:
    """Run a command to its end and return its exit status; a wish to stop waits until the stage has saved."""
    process = subprocess.Popen(line, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"})
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has told the stage as well
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
