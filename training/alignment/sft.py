"""How supervised fine-tuning trains: TRL's trainer, packed rows, and documents of the pretraining text among them."""

from pathlib import Path

import numpy as np
import trl
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.token_ids import refuse_other_tokenizer
from training.alignment.config import SftConfig
from training.alignment.stage import Data, lora_config, run_stage
from training.alignment.trainer import WholeStep, training_arguments
from training.engine.device import say
from training.engine.packing import cut_documents
from training.engine.token_shards import load_shards


class SftTrainer(WholeStep, trl.SFTTrainer):
    """TRL's trainer, a step at a time."""


def run(config: SftConfig) -> None:
    """Run the stage."""
    run_stage("sft", config, ["conversations"], make_trainer, "Next: `python -m training.dpo`, or talk to it.")


def make_trainer(
    config: SftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[trl.SFTTrainer, list[str]]:
    """Return the trainer, and what it logs."""
    dataset = data.train.dataset
    if config.replay_rows:
        documents = replayed(config, dataset.column_names)
        replay = str(config.replay)
        refuse_other_tokenizer(load_shards(Path(replay), "train").tokenizer, tokenizer, replay, say)
        dataset = concatenate_datasets([dataset, documents.cast(dataset.features)])
        say(f"{len(documents):,} documents of the pretraining text are mixed in")
    if config.packing:
        dataset = trl.pack_dataset(dataset, config.max_length, "bfd")
        config.micro_batch_size = config.micro_batch_size or 1  # TRL joins the rows of a batch to a single long one
    trainer = SftTrainer(
        model=model,
        args=trl.SFTConfig(
            **training_arguments(config),
            packing=config.packing,
            dataset_kwargs={"skip_prepare_dataset": True},  # it is done: tokenized safely, cut and counted
        ),
        train_dataset=dataset,
        eval_dataset=data.held_out.dataset if data.held_out else None,
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    return trainer, ["mean_token_accuracy"]


def replayed(config: SftConfig, columns: list[str]) -> Dataset:
    """Return random documents of the pretraining text as rows of token ids and labels.

    Mixing them in keeps what was learnt from them, as in the last step of InstructGPT (arXiv:2203.02155).

    Raises:
        ValueError: The shards are not named, or hold too few documents.
    """
    if config.replay is None:
        raise ValueError(f"replay_rows={config.replay_rows} needs --replay, the folder of the token shards.")
    shards = load_shards(Path(config.replay), "train")
    found = cut_documents(shards, config.max_length - 1)
    if config.replay_rows > len(found):
        raise ValueError(
            f"replay_rows={config.replay_rows}, but {config.replay} has {len(found)} documents; take fewer."
        )
    chosen = np.random.default_rng(config.seed).choice(len(found), config.replay_rows, replace=False)
    # From its separator to the next one, as in pretraining.
    rows = [np.array(shards.tokens[start : start + length + 1], np.int32) for start, length in found[chosen]]
    return Dataset.from_dict({column: rows for column in columns})
