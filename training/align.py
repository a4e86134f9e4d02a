"""What SFT and DPO share: settings, the model to train, the order of rows, the log, resuming and saving.

The training itself is TRL's. This file gives it what its defaults would get wrong for a small model or for a CPU, and
counts and prints what a trainer would do in silence.
"""

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, PeftModel
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
)

import hf_scratch
from hf_scratch.tokenizer import CHAT_TEMPLATE, IM_END, IM_START
from training.hardware import mixed_precision
from training.save import save_model
from training.stage import METRICS, Stage, atomic_folder, cut_metrics, open_stage

CHECKPOINTS = "checkpoints"
POOL = 50  # batches whose rows are sorted by length together: little padding, and still a random mixture


@dataclass(kw_only=True)
class AlignConfig:
    """Settings that SFT and DPO have in common."""

    output_dir: str = field(metadata={"help": "Folder of the run."})
    model: str = field(metadata={"help": "Folder or Hub id of the causal language model to start from."})
    data: str = field(
        default="stories", metadata={"help": "stories (embedded), a .jsonl or .parquet file, or a Hub data set's id."}
    )
    num_examples: int = field(default=0, metadata={"help": "Rows to train on; 0 takes all, stories need a number."})
    eval_examples: int = field(default=0, metadata={"help": "Rows held out for evaluation; 0 is none."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a row; what is longer is cut, and counted."})

    epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    max_steps: int = field(default=0, metadata={"help": "Optimizer steps; 0 lets epochs decide."})
    batch_size: int = field(default=32, metadata={"help": "Rows of an optimizer step, over all processes."})
    micro_batch_size: int = field(default=0, metadata={"help": "Rows a process holds at once; 0 takes all of a step."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = field(
        default="linear", metadata={"help": "Learning rate after the warmup; linear and cosine fall to 0."}
    )
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of the steps with linear warmup; 0 is none."})
    weight_decay: float = field(default=0.0, metadata={"help": "On matrices, none on norms and biases; 0 is none."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this length."})
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA on all linear layers; 0 trains the full model."})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice to save memory; about 20%% slower."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of rows, of LoRA's weights and of stories."})

    log_steps: int = field(default=10, metadata={"help": "Steps between lines of metrics.jsonl."})
    eval_steps: int = field(default=0, metadata={"help": "Steps between evaluations; 0 evaluates at the end only."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints, of which the last is kept."})


def open_align_stage(name: str, config: AlignConfig) -> Stage:
    """Open the stage's folder, one process after the other, and keep what libraries print to what a user needs."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # TRL asks transformers by the old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    with PartialState().main_process_first():
        return open_stage(name, config, {"model": config.model, "data": config.data}, config.output_dir)


def say(text: str) -> None:
    """Print on the main process."""
    PartialState().print(text, flush=True)


# ---- the model ----


def load_model(config: AlignConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model in float32 and its tokenizer, which ends a turn as the chat template does.

    Raises:
        ValueError: There is no such model, it has no chat template and not the tokens of ours, or `max_length` is
            longer than its context.
    """
    hf_scratch.ScratchForCausalLM  # noqa: B018 - the first use registers our class, so that it needs no remote code
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(config.model)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{config.model} is not a model's folder, nor a Hub id that can be read ({reason})") from None
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None:
        if not {IM_START, IM_END} <= vocabulary.keys():
            raise ValueError(
                f"{config.model} has no chat template, and not the tokens {IM_START} and {IM_END} of ours; "
                "save a tokenizer with a chat_template beside the model, or start from its chat version."
            )
        tokenizer.chat_template = CHAT_TEMPLATE
    if IM_END in vocabulary and IM_END in tokenizer.chat_template:
        tokenizer.eos_token = IM_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # The Trainer would do this as well, and warn of it.
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            setattr(model.config, name, token)
            setattr(model.generation_config, name, token)
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and config.max_length > context:
        raise ValueError(
            f"max_length={config.max_length} is longer than the context of {config.model}; use at most {context}."
        )
    return model, tokenizer


def lora_config(config: AlignConfig) -> LoraConfig | None:
    """Return adapters of rank `lora_r` on every linear layer but the LM head, None for full training.

    Scaled by alpha / r = 2, the ratio that is usual for small ranks.
    """
    if config.lora_r == 0:
        return None
    # Our model type is not in PEFT's table of layers to adapt, so they are named by their kind.
    return LoraConfig(
        r=config.lora_r, lora_alpha=2 * config.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
    )


# ---- training ----


def training_arguments(config: AlignConfig) -> dict[str, Any]:
    """Return the arguments that TRL's SFTConfig and DPOConfig share.

    Raises:
        ValueError: The batch cannot be shared out evenly.
    """
    processes = PartialState().num_processes
    micro_batch = config.micro_batch_size or config.batch_size // processes
    if micro_batch < 1 or config.batch_size % (micro_batch * processes):
        raise ValueError(
            f"batch_size={config.batch_size} is not a multiple of micro_batch_size={config.micro_batch_size} "
            f"times {processes} processes; change one of them."
        )
    evaluates = config.eval_examples > 0 and config.eval_steps > 0
    return {
        "output_dir": str(Path(config.output_dir) / CHECKPOINTS),
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": config.batch_size // (micro_batch * processes),
        "num_train_epochs": 1,  # `arrange_rows` lays out all epochs
        "max_steps": config.max_steps or -1,
        "max_length": config.max_length,
        "train_sampling_strategy": "sequential",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        # TRL's defaults are bfloat16 and recomputed activations, on a CPU as well.
        "bf16": mixed_precision() == "bf16",
        "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "activation_checkpointing": config.activation_checkpointing,
        "gradient_checkpointing": config.activation_checkpointing,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite would be logged as the one before
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.eval_steps if evaluates else None,
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
    }


def row_order(lengths: np.ndarray, num_rows: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the indices of the rows of the whole run, `num_rows` of them over any number of epochs.

    Rows of a batch are of similar length, batches are in random order. The order is a function of the seed alone, so
    that a resumed run sees the same rows; Trainer's own grouping goes from long to short rows again and again.
    """
    rng = np.random.default_rng(seed)
    epochs = math.ceil(num_rows / len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[:num_rows]
    whole = num_rows // batch_size * batch_size
    parts = []
    for start in range(0, whole, POOL * batch_size):
        pool = stream[start : min(start + POOL * batch_size, whole)]
        batches = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch_size)
        parts.append(rng.permutation(batches).ravel())
    return np.concatenate([*parts, stream[whole:]])


def train(
    trainer: Trainer, lengths: Sequence[int], config: AlignConfig, stage: Stage, measures: Sequence[str]
) -> dict[str, Any]:
    """Train to the last step, from the last checkpoint if there is one, save the model and return the last figures.

    Args:
        lengths: Tokens of each row of the trainer's data.
        measures: What the trainer logs that metrics.jsonl shall have, besides what every run has.
    """
    num_rows = config.max_steps * config.batch_size or max(1, round(config.epochs * len(lengths)))
    order = row_order(np.array(lengths), num_rows, config.batch_size, config.seed)
    trainer.train_dataset = trainer.train_dataset.select(order)
    log = MetricsLog(stage.folder / METRICS, measures, config.batch_size / len(lengths))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(log)
    checkpoint = last_checkpoint(stage.folder / CHECKPOINTS)
    seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if trainer.accelerator.is_main_process:
        save(trainer, stage.folder)
    return {"steps": trainer.state.global_step, "train_seconds": seconds, **log.last}


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint of a Trainer and remove what was cut off while being written."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    # The state is the last file that the Trainer writes.
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    for path in set(found) - set(complete):
        shutil.rmtree(path, ignore_errors=True)  # each process of a run tries
    if not complete:
        return None
    say(f"goes on from step {complete[-1].name.rpartition('-')[2]}")
    return str(complete[-1])


def save(trainer: Trainer, folder: Path) -> None:
    """Write `folder/model`, and for LoRA also the adapter alone to `folder/adapter`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        with atomic_folder(folder / "adapter") as beside:
            model.save_pretrained(beside)
        model = model.merge_and_unload()
    save_model(model, trainer.processing_class, folder / "model")


def finish(stage: Stage, metrics: dict[str, Any], advice: str) -> None:
    """Write the record, remove the checkpoints, which nobody needs any more, and say what is next."""
    if not PartialState().is_main_process:
        return
    stage.finish(metrics)
    shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    print(f"The model is in {stage.folder / 'model'}. {advice}")


class MetricsLog(ProgressCallback):
    """Writes metrics.jsonl and draws the progress bar; the Trainer's own bar prints every figure of every line."""

    def __init__(self, path: Path, measures: Sequence[str], epochs_per_step: float) -> None:
        super().__init__()
        self.path, self.epochs_per_step = path, epochs_per_step
        names = ["loss", "eval_loss", "learning_rate", "grad_norm", *measures]
        self.names = {name: "lr" if name == "learning_rate" else name for name in names}
        self.last: dict[str, Any] = {}  # newest value of each figure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that will be trained again."""
        self.current_step = 0
        if not state.is_world_process_zero:
            return
        self.training_bar = tqdm(total=state.max_steps, unit="step", disable=None, dynamic_ncols=True)
        cut_metrics(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the last step logged, whatever its number."""
        super().on_step_end(args, state, control, **kwargs)
        control.should_log |= state.global_step == state.max_steps

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No second bar for an evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line; what was not measured at it is null.

        Raises:
            ValueError: The loss is not finite.
        """
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        line = {"step": state.global_step, "epoch": round(state.global_step * self.epochs_per_step, 4)}
        line |= {name: logs.get(key) for key, name in self.names.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last |= {key: value for key, value in line.items() if value is not None}
        loss = logs.get("loss", logs.get("eval_loss"))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {state.global_step}; lower learning_rate={args.learning_rate}."
            )
        if "eval_loss" in logs:
            tqdm.write(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
        elif self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {loss:.3f}")
