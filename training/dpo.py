"""Direct preference optimization: make a model prefer the chosen to the rejected answers (arXiv:2305.18290).

    python -m training.dpo --config training/recipes/quickstart/dpo.yaml \\
        --model runs/quickstart/sft/model --output_dir runs/quickstart/dpo

The reference is the model as it was loaded: before the first step both agree, so that the loss is ln 2, or the run
stops. Pairs come from the embedded stories, a JSONL or Parquet file (`--data my.jsonl`) or the Hub.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from training.align import (
    AlignConfig,
    finish,
    load_model,
    lora_config,
    open_align_stage,
    say,
    train,
    training_arguments,
)
from training.data.chat import Encoded, Row, encode_chats, load_rows
from training.stage import command, parse_config

TOLERANCE = 1e-3  # of the first loss around ln 2: summed rounding of some hundred log-probabilities is below 1e-4
MEASURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")


@dataclass(kw_only=True)
class DpoConfig(AlignConfig):
    """Settings of the stage `dpo`."""

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})
    beta: float = field(default=0.1, metadata={"help": "How strongly the model is held to the reference."})
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": "TRL's losses to add up; `sigmoid sft` keeps the chosen answers from becoming unlikely."},
    )
    loss_weights: list[float] = field(
        default_factory=list, metadata={"help": "Weight of each loss; none given is 1 for each."}
    )


class CheckedDPOTrainer(trl.DPOTrainer):
    """TRL's trainer on rows that are tokenized already, with a look at the first loss."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a batch.

        Raises:
            ValueError: Before the first step, model and reference do not give the pairs the same log-probabilities.
        """
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.state.global_step == 0 and model.training:
            check_first_loss({key: values[-1] for key, values in self._metrics["train"].items()})
        return loss


def check_first_loss(figures: dict[str, float]) -> None:
    """Raise ValueError if a wrong reference moves the sigmoid loss of the first batch off ln 2."""
    for side in ("chosen", "rejected"):
        reward = figures[f"rewards/{side}"]
        first_loss = math.log1p(math.exp(-abs(reward)))
        if not abs(first_loss - math.log(2)) <= TOLERANCE:
            raise ValueError(
                f"the first DPO loss must be ln 2 = {math.log(2):.4f}, since model and reference are the same before "
                f"the first step, but the mean reward of the {side} answers is {reward:.4f} and not 0; the "
                "reference is another model, or the model is not deterministic."
            )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(DpoConfig, argv, __doc__)
    stage = open_align_stage("dpo", config)
    if stage.done:
        return
    model, tokenizer = load_model(config)
    rows, held_out = load_rows("preferences", config.data, config.num_examples, config.eval_examples, config.seed)
    dataset, counts = tokenize(tokenizer, rows, config.max_length)
    eval_dataset = tokenize(tokenizer, held_out, config.max_length)[0] if held_out else None
    say(
        "{rows:,} pairs, {tokens:,} tokens of which {answer_tokens:,} are answers; {truncated:,} cut at max_length, "
        "{dropped:,} dropped because the prompt fills it".format(**counts)
    )
    show(tokenizer, dataset[0])
    trainer = CheckedDPOTrainer(
        model=model,
        # Without LoRA, TRL would load the reference from where the model once came from.
        ref_model=None if config.lora_r else copy.deepcopy(model),
        args=trl.DPOConfig(
            **training_arguments(config),
            beta=config.beta,
            loss_type=config.loss_type,
            loss_weights=config.loss_weights or None,
        ),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in dataset]
    measures = [*MEASURES, *LOGPS, *(f"eval_{name}" for name in MEASURES)]
    metrics = train(trainer, lengths, config, stage, measures)
    finish(stage, counts | metrics, "Next: `python -m training.eval_model`, or talk to it.")


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int) -> tuple[Dataset, dict[str, int]]:
    """Return token ids of prompts, chosen and rejected answers, and the counts of what was kept, cut and dropped.

    Raises:
        ValueError: Nothing is left.
    """
    counts = {"rows": 0, "tokens": 0, "answer_tokens": 0, "truncated": 0, "dropped": 0}
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    both = (row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected"))
    encoded = encode_chats(tokenizer, both)
    pairs = zip(encoded, encoded, strict=True)
    for chosen, rejected in tqdm(pairs, "tokenize", len(rows), disable=None, leave=False):
        prompt, *answers = split_pair(chosen, rejected)
        room = max_length - len(prompt)
        if room <= 0:
            counts["dropped"] += 1
            continue
        columns["prompt_ids"].append(prompt)
        columns["chosen_ids"].append(answers[0][:room])
        columns["rejected_ids"].append(answers[1][:room])
        answer_tokens = sum(min(len(answer), room) for answer in answers)
        counts["rows"] += 1
        counts["tokens"] += 2 * len(prompt) + answer_tokens
        counts["answer_tokens"] += answer_tokens
        counts["truncated"] += any(len(answer) > room for answer in answers)
    if not counts["rows"]:
        raise ValueError(f"the prompts of all {len(rows)} pairs fill max_length={max_length} tokens; raise it.")
    return Dataset.from_dict(columns), counts


def split_pair(chosen: Encoded, rejected: Encoded) -> tuple[list[int], list[int], list[int]]:
    """Return prompt, chosen and rejected answer; an answer ends with its end token, as the model's own would."""
    (chosen_start, chosen_end), (rejected_start, rejected_end) = last_answer(chosen[1]), last_answer(rejected[1])
    start = min(chosen_start, rejected_start)
    return chosen[0][:start], chosen[0][start:chosen_end], rejected[0][start:rejected_end]


def last_answer(mask: list[int]) -> tuple[int, int]:
    """Return where the last run of ones begins and ends."""
    end = len(mask) - mask[::-1].index(1)
    return end - [0, *mask[:end]][::-1].index(0), end


def show(tokenizer: PreTrainedTokenizerBase, row: dict[str, list[int]]) -> None:
    """Print one pair as the model sees it."""
    say("The first pair as the model sees it:")
    for name in ("prompt", "chosen", "rejected"):
        say(f"  {name:>8} | {tokenizer.decode(row[name + '_ids'])!r}")


if __name__ == "__main__":
    main()
