"""Supervised fine-tuning: teach a model to answer, by conversations in which only the assistant's tokens carry loss.

    python -m training.sft --config training/recipes/quickstart/sft.yaml \\
        --model runs/quickstart/pretrain/model --output_dir runs/quickstart/sft
    python -m training.sft --model runs/quickstart/pretrain/model --data my.jsonl --inspect

Any causal language model, and conversations from the embedded stories, a file (messages, prompt and completion,
Alpaca or ShareGPT) or the Hub. Killed at any moment, the same command goes on from the last checkpoint.
"""

from training.alignment.config import SftConfig
from training.stage.config import parse_config
from training.stage.record import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(SftConfig, argv, __doc__)
    from training.alignment.sft import run  # torch and TRL take seconds, which neither --help nor a typo waits for

    run(config)


if __name__ == "__main__":
    main()
