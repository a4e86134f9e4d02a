"""Supervised fine-tuning: teach a model to answer, by conversations in which only the assistant's tokens carry loss.

    python -m training.sft --config training/recipes/quickstart/sft.yaml \\
        --model runs/quickstart/pretrain/model --output_dir runs/quickstart/sft

Any causal language model, and conversations from the embedded stories, a JSONL or Parquet file (`--data my.jsonl`)
or the Hub. Killed at any moment, the same command goes on from the last checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
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
from training.data.batches import IGNORE
from training.data.chat import Row, encode_chats, load_rows
from training.stage import command, parse_config


@dataclass(kw_only=True)
class SftConfig(AlignConfig):
    """Settings of the stage `sft`."""

    packing: bool = field(
        default=False,
        metadata={
            "help": "Fill rows of max_length with several conversations, which do not see each other; a process then "
            "holds one row at once unless micro_batch_size says more, which pays with flash attention only."
        },
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(SftConfig, argv, __doc__)
    stage = open_align_stage("sft", config)
    if stage.done:
        return
    model, tokenizer = load_model(config)
    rows, held_out = load_rows("conversations", config.data, config.num_examples, config.eval_examples, config.seed)
    dataset, counts = tokenize(tokenizer, rows, config.max_length)
    eval_dataset = tokenize(tokenizer, held_out, config.max_length)[0] if held_out else None
    say(
        "{rows:,} conversations, {tokens:,} tokens of which {answer_tokens:,} carry loss; "
        "{truncated:,} cut at max_length, {dropped:,} dropped because no answer was left".format(**counts)
    )
    show(tokenizer, dataset[0])
    if config.packing:
        dataset = trl.pack_dataset(dataset, config.max_length, "bfd")
        config.micro_batch_size = config.micro_batch_size or 1  # TRL joins the rows of a batch to a single long one
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            **training_arguments(config),
            packing=config.packing,
            dataset_kwargs={"skip_prepare_dataset": True},  # it is done: tokenized safely, cut and counted
        ),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    lengths = [len(ids) for ids in dataset["input_ids"]]
    metrics = train(trainer, lengths, config, stage, ["mean_token_accuracy"])
    finish(stage, counts | metrics, "Next: `python -m training.dpo`, or talk to it.")


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int) -> tuple[Dataset, dict[str, int]]:
    """Return token ids and labels of the conversations, and the counts of what was kept, cut and dropped.

    Raises:
        ValueError: Nothing is left.
    """
    counts = {"rows": 0, "tokens": 0, "answer_tokens": 0, "truncated": 0, "dropped": 0}
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    chats = (row["messages"] for row in rows)
    for ids, mask in tqdm(encode_chats(tokenizer, chats), "tokenize", len(rows), disable=None, leave=False):
        tokens = np.array(ids[:max_length], dtype=np.int32)
        labels = np.where(np.array(mask[:max_length]) == 1, tokens, IGNORE).astype(np.int32)
        if (labels == IGNORE).all():
            counts["dropped"] += 1
            continue
        columns["input_ids"].append(tokens)
        columns["labels"].append(labels)
        counts["rows"] += 1
        counts["tokens"] += len(tokens)
        counts["answer_tokens"] += int((labels != IGNORE).sum())
        counts["truncated"] += len(ids) > max_length
    if not counts["rows"]:
        raise ValueError(
            f"none of the {len(rows)} conversations has an answer within max_length={max_length} tokens; "
            "raise max_length, or check the roles."
        )
    return Dataset.from_dict(columns), counts


def show(tokenizer: PreTrainedTokenizerBase, row: dict[str, list[int]]) -> None:
    """Print one conversation as the model sees it, part by part, and which parts carry loss."""
    say("The first row as the model sees it:")
    carries = np.array(row["labels"]) != IGNORE
    borders = [0, *(np.flatnonzero(np.diff(carries)) + 1), len(carries)]
    for start, end in zip(borders, borders[1:], strict=False):
        name = "loss" if carries[start] else "no loss"
        say(f"  {name:>8} | {tokenizer.decode(row['input_ids'][start:end])!r}")


if __name__ == "__main__":
    main()
