"""What can be set of SFT and DPO, and what TRL is told of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState

from training.engine.device import PRECISION_HELP, Precision, on_cpu, resolve_precision
from training.stage.config import SameRun

CHECKPOINTS = "checkpoints"


@dataclass(kw_only=True)
class AlignConfig:
    """Settings that SFT and DPO have in common."""

    output_dir: str = field(default="", metadata={"help": "Folder of the stage."})
    model: str = field(metadata={"help": "Folder or Hub id of the causal language model to start from."})
    data: str = field(
        default="stories",
        metadata={"help": "stories (embedded), a .jsonl, .json or .parquet file, or a Hub data set's id."},
    )
    inspect: bool = field(
        default=False, metadata={"help": "Show the data check and the first row as the model sees it, and stop."}
    )
    num_examples: int = field(default=0, metadata={"help": "Rows to train on; 0 takes all, stories need a number."})
    eval_examples: int = field(default=0, metadata={"help": "Rows held out for evaluation; 0 is none."})
    max_length: int = field(
        default=0, metadata={"help": "Tokens of a row; what is longer is cut, and counted. 0 is the model's context."}
    )

    epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    max_steps: int = field(default=0, metadata={"help": "Optimizer steps; 0 lets epochs decide."})
    batch_size: int = field(default=32, metadata={"help": "Rows of an optimizer step, over all processes."})
    micro_batch_size: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "Rows a process holds at once; 0 takes all of a step."}
    )
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw",
        metadata={"help": "muon: for the layers' matrices of a model all of whose weights are trained."},
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = field(
        default="linear", metadata={"help": "Learning rate after the warmup; linear and cosine fall to 0."}
    )
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of the steps with linear warmup; 0 is none."})
    weight_decay: float = field(default=0.0, metadata={"help": "On matrices, none on norms and biases; 0 is none."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this length."})
    tune: Literal["full", "lora", "qlora"] = field(
        default="full",
        metadata={"help": "All weights, adapters on all linear layers, or these on a model in 4 bits."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    activation_checkpointing: Annotated[bool, SameRun()] = field(
        default=False, metadata={"help": "Compute activations twice to save memory; about 20%% slower."}
    )
    answer_temperature: float = field(
        default=0.0,
        metadata={
            "help": "Temperature at which the saved model asks to be sampled, in its generation_config.json with a "
            "top-k of 50, so that a chat with it does so; 0 keeps how it generates."
        },
    )
    precision: Precision = field(default="auto", metadata={"help": PRECISION_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of the order of rows, of LoRA's weights and of stories."})

    log_steps: Annotated[int, SameRun()] = field(
        default=10, metadata={"help": "Steps between lines of metrics.jsonl."}
    )
    eval_steps: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "Steps between evaluations; 0 evaluates at the end only."}
    )
    save_steps: Annotated[int, SameRun()] = field(
        default=500, metadata={"help": "Steps between checkpoints, of which the last is kept."}
    )

    def inputs(self) -> dict[str, str | None]:
        """Return the settings that name a file, a folder or a Hub id to read."""
        return {"model": self.model, "data": self.data}


def say(text: str) -> None:
    """Print on the main process."""
    PartialState().print(text, flush=True)


def common_arguments(config: Any) -> dict[str, Any]:
    """Return what TRL is told alike in SFT, DPO and GRPO; `config` is an `AlignConfig` or a `GrpoConfig`."""
    return {
        "output_dir": str(Path(config.output_dir) / CHECKPOINTS),
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        # TRL's defaults are bfloat16 and recomputed activations, on a CPU as well.
        "bf16": resolve_precision(config.precision) == "bf16",
        "use_cpu": on_cpu(),
        "activation_checkpointing": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite would be logged as the one before
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "report_to": "none",
    }


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
    if config.optimizer == "muon" and config.tune != "full":
        raise ValueError(f"optimizer=muon is for all weights, not for --tune {config.tune}; leave it out.")
    if config.eval_steps and not config.eval_examples:
        raise ValueError(
            f"eval_steps={config.eval_steps} without rows to evaluate on; set eval_examples, or leave eval_steps 0."
        )
    evaluates = config.eval_examples > 0 and config.eval_steps > 0
    return common_arguments(config) | {
        "per_device_train_batch_size": config.batch_size // processes,  # `WholeStep` splits it into micro-batches
        "per_device_eval_batch_size": micro_batch,
        "num_train_epochs": 1,  # `row_order` lays out all epochs
        "max_length": config.max_length,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": config.schedule,
        "weight_decay": config.weight_decay,
        "activation_checkpointing": config.activation_checkpointing,
        "gradient_checkpointing": config.activation_checkpointing,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.eval_steps if evaluates else None,
        "ddp_find_unused_parameters": False,
    }
