"""Say what a pretraining run will need before it runs: parameters, operations, memory, tokens, time and cost.

    python -m training.plan --config training/recipes/quickstart
    python -m training.plan --config training/recipes/fineweb-124m --hardware a100-80gb --gpus 8 --price 2.50

Without `--hardware` the plan is for this machine, and the time is measured by taking a few steps on random tokens.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.engine.gpus import HARDWARE
from training.stage.record import command


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe folder, or its pretrain.yaml")
    parser.add_argument("--vocab_size", type=int, help="tokens; by default what the recipe's tokenizer.yaml says")
    parser.add_argument("--hardware", choices=sorted(HARDWARE), help="GPU to plan for; by default this machine")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak to reckon with")
    parser.add_argument("--price", type=float, help="dollars for an hour of one GPU")
    args = parser.parse_args(argv)
    if args.gpus < 1 or not 0 < args.mfu <= 1:
        raise ValueError(f"--gpus {args.gpus} must be at least 1, and --mfu {args.mfu} a share between 0 and 1.")
    # torch takes seconds, which neither --help nor a typo waits for
    from training.engine.estimate import describe, plan_for_gpus, plan_for_this_machine, read_recipe

    recipe = read_recipe(args.config, args.vocab_size)
    print(describe(recipe))
    if args.hardware:
        print(plan_for_gpus(recipe, args.hardware, args.gpus, args.mfu, args.price))
    else:
        print(plan_for_this_machine(recipe, args.price))


if __name__ == "__main__":
    main()
