"""Pretrain a Scratch model on token shards: one loop, the same on a laptop and under `accelerate launch`.

    python -m training.pretrain --config training/recipes/quickstart/pretrain.yaml \\
        --data runs/quickstart/data --tokenizer runs/quickstart/tokenizer --output_dir runs/quickstart/pretrain

A step is defined by its global batch in tokens. Killed at any moment, the same command goes on from the last
checkpoint and ends, on a CPU, bit for bit where an undisturbed run ends.
"""

from training.engine.config import PretrainConfig
from training.stage.config import parse_config
from training.stage.record import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(PretrainConfig, argv, __doc__)
    from training.engine.loop import run  # torch takes seconds, which neither --help nor a typo waits for
    from training.evaluation.tasks import tasks_to_follow

    run(config, tasks_to_follow(config.eval_tasks, config.eval_task_rows, config.eval_task_data))


if __name__ == "__main__":
    main()
