"""Direct preference optimization: make a model prefer the chosen to the rejected answers (arXiv:2305.18290).

    python -m training.dpo --config training/recipes/quickstart/dpo.yaml \\
        --model runs/quickstart/sft/model --output_dir runs/quickstart/dpo
    python -m training.dpo --model runs/quickstart/sft/model --data pairs.jsonl --inspect

The reference is the model as it was loaded: before the first step both agree, so that the loss is ln 2, or the run
stops. Pairs come from the embedded stories, a file (prompt, chosen and rejected; two chats; HH-RLHF's text) or the
Hub; answers with a thumb up or down (prompt, completion, label) are trained on with KTO instead.
"""

from training.alignment.config import DpoConfig
from training.stage.config import parse_config
from training.stage.record import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(DpoConfig, argv, __doc__)
    from training.alignment.dpo import run  # torch and TRL take seconds, which neither --help nor a typo waits for

    run(config)


if __name__ == "__main__":
    main()
