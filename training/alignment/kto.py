"""Alignment by thumbs: answers that were liked or not, one by one and not in pairs (KTO, arXiv:2402.01306).

`training.dpo` comes here when its data has the columns prompt, completion and label. The step, the reference and the
log are those of DPO.
"""

from typing import Any

import trl
from datasets import Dataset

from training.alignment.config import AlignConfig
from training.alignment.trainer import WholeStep, training_arguments

MEASURES = ("rewards/chosen", "rewards/rejected", "rewards/margins")
LOGPS = ("logps/chosen", "logps/rejected", "kl")


class CheckedKTOTrainer(WholeStep, trl.KTOTrainer):
    """TRL's trainer on rows that are tokenized already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return mismatched(dataset)

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give each prompt of the step the answer to another one, on which the KL is estimated."""
        others = [rows[-1], *rows[:-1]]
        return [row | {"KL_completion_ids": other["completion_ids"]} for row, other in zip(rows, others, strict=True)]


def mismatched(dataset: Dataset) -> Dataset:
    """Add the answer to another prompt to each row."""
    answers = list(dataset["completion_ids"])
    return dataset.add_column("KL_completion_ids", [answers[-1], *answers[:-1]])


def make_kto_trainer(config: AlignConfig, beta: float, common: dict[str, Any]) -> tuple[trl.KTOTrainer, list[str]]:
    """Return the trainer, and what it logs.

    Raises:
        ValueError: micro_batch_size is 1.
    """
    arguments = training_arguments(config)
    if arguments["per_device_eval_batch_size"] < 2:
        raise ValueError("KTO estimates a KL over the rows that are held at once; use micro_batch_size=2 or more.")
    labels = common["train_dataset"]["label"]
    up, down = sum(labels), len(labels) - sum(labels)
    trainer = CheckedKTOTrainer(
        **common,
        # Both sides weigh the same in all, as equation 8 of the paper asks for.
        args=trl.KTOConfig(
            **arguments, beta=beta, desirable_weight=max(1, down / up), undesirable_weight=max(1, up / down)
        ),
    )
    return trainer, [*MEASURES, *LOGPS, *(f"eval_{name}" for name in MEASURES)]
