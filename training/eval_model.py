"""Measure models side by side: bits per byte of held-out text, public tasks, and how well they answer story prompts.

    python -m training.eval_model --config training/recipes/quickstart/eval.yaml --data runs/mine/data \\
        --models base=runs/mine/pretrain/model sft=runs/mine/sft/model --output_dir runs/mine/eval
    python -m training.eval_model --models a=user/model b=runs/mine/release/model --text book.txt \\
        --tasks hellaswag stories_hero --num_prompts 0 --output_dir runs/compared

Every model gets the same text and prompts. `results.json` holds the numbers with intervals and paired tests,
`report.md` and `report.html` say what they mean, `answers.jsonl` has every answer.
"""

from training.evaluation.config import EvalConfig
from training.stage.config import parse_config
from training.stage.record import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(EvalConfig, argv, __doc__)
    from training.evaluation.measure import run  # torch takes seconds, which neither --help nor a typo waits for

    run(config)


if __name__ == "__main__":
    main()
