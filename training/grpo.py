"""Reinforcement by checkers: raise what the story checkers reward, instead of imitating or comparing answers (GRPO).

    python -m training.run training/recipes/grpo --output_dir runs/quickstart
    python -m training.grpo --config training/recipes/grpo/grpo.yaml \\
        --model runs/quickstart/sft/model --output_dir runs/quickstart/grpo
    python -m training.grpo --prompts prompts.jsonl --reward rewards:brief --model my/model --output_dir runs/mine/grpo

Each step asks a few prompts several times, and moves the model towards the answers that are better than the others to
the same prompt (arXiv:2402.03300). Prompts are those of the stories' training split, or your own with a function of
your own that says how good an answer is; the chain is base, SFT, then DPO or this.
"""

from training.alignment.config import GrpoConfig
from training.stage.config import parse_config
from training.stage.record import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(GrpoConfig, argv, __doc__)
    from training.alignment.grpo import run  # torch and TRL take seconds, which neither --help nor a typo waits for

    run(config)


if __name__ == "__main__":
    main()
