"""What can be set of a pretraining run; nothing here waits for torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from training.stage.config import SameRun

Precision = Literal["auto", "fp32", "bf16"]
PRECISION_HELP = (
    "Precision of matrix products. auto: bf16 (autocast) where the hardware multiplies it, else fp32. A run that "
    "goes on on another machine keeps the precision that it began with."
)
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
TRACKER_HELP = "Where the metrics are shown, besides metrics.jsonl."


@dataclass(kw_only=True)
class PretrainConfig:
    """Settings of the stage `pretrain`."""

    output_dir: str = field(metadata={"help": "Folder of the run."})
    data: list[str] = field(
        metadata={"help": "Folder or URL of token shards; several mix as FOLDER=WEIGHT, 1 being one pass an epoch."}
    )
    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer that made the shards."})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Model to train on from: folder or Hub id of a Scratch or dense Qwen3 model, whose sizes and "
            "tokenizer hold."
        },
    )

    hidden_size: int = field(default=768, metadata={"help": "Width of the model."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of SwiGLU; 8/3 hidden if not set."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Number of decoder layers."})
    num_attention_heads: int = field(default=12, metadata={"help": "Number of query heads."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Key/value heads; all heads if not set."})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "Share the embedding with the LM head."})
    rope_theta: float = field(default=10000.0, metadata={"help": "Base of the rotary frequencies."})
    copy_strength: float = field(
        default=0.0,
        metadata={"help": "How much attention copies at first (training/engine/initial_weights.py); 0 is none."},
    )
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights; 0 is none."})

    context_length: int = field(default=1024, metadata={"help": "Longest sequence of the model, in tokens."})
    row_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a training row; no later position is trained. context_length if not set."},
    )
    batch_rows: int = field(default=512, metadata={"help": "Rows of an optimizer step, over all processes."})
    micro_batch_size: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "Rows a process holds at once; 0 takes what fits."}
    )
    pack_documents: bool = field(
        default=False,
        metadata={"help": "Fill rows with whole documents that do not see each other, not with windows of text."},
    )
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})

    precision: Precision = field(default="auto", metadata={"help": PRECISION_HELP})
    compile: bool | None = field(
        default=None,
        metadata={
            "help": "Compile the layers and the loss (torch.compile). If not set: on a GPU, and on a CPU in runs long "
            "enough to win back the minute that it takes, where there is a C++ compiler."
        },
    )
    attn_implementation: Annotated[
        Literal["sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"], SameRun()
    ] = field(
        default="sdpa",
        metadata={
            "help": "Kernel of attention. On a GPU packed documents need flex_attention or flash_attention_2 to be "
            "fast; sdpa reads a mask of all pairs of positions."
        },
    )
    activation_checkpointing: Annotated[bool, SameRun()] = field(
        default=False, metadata={"help": "Compute activations twice to save memory; a third more operations."}
    )
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw", metadata={"help": "muon: Muon for the layers' matrices, AdamW for the rest."}
    )
    learning_rate: float = field(default=6e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warmup; 0 is none."})
    schedule: Literal["cosine", "wsd"] = field(
        default="cosine", metadata={"help": "After the warmup: cosine falls all the way, wsd at the end."}
    )
    decay_fraction: float = field(
        default=0.2, metadata={"help": "wsd: share of the steps, at the end, in which it falls."}
    )
    until_val_bpb: float | None = field(
        default=None,
        metadata={"help": "wsd: held-out bits per byte at which the fall begins early; max_steps stays the most."},
    )
    patience: int = field(
        default=0,
        metadata={
            "help": "Evaluations without a lower held-out loss that end the run, with its best model; 0 is none."
        },
    )
    weight_decay: float = field(default=0.1, metadata={"help": "On matrices, none on norms; 0 is none."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW: decay of the mean gradient."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW: decay of the mean squared gradient."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this length."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the order of rows."})

    tracker: Annotated[Tracker, SameRun()] = field(default="none", metadata={"help": TRACKER_HELP})
    profile_steps: Annotated[int, SameRun()] = field(
        default=0,
        metadata={
            "help": "Steps that torch.profiler records into output_dir/trace.json, from the fourth step on; 0 is none."
        },
    )
    log_steps: Annotated[int, SameRun()] = field(
        default=20, metadata={"help": "Steps between lines of metrics.jsonl."}
    )
    eval_steps: Annotated[int, SameRun(unless=("until_val_bpb", "patience"))] = field(
        default=200, metadata={"help": "Steps between evaluations on the held-out text."}
    )
    eval_tasks: Annotated[list[str], SameRun()] = field(
        default_factory=list,
        metadata={"help": "Tasks of training.eval_model to score at each evaluation, as blimp; none if empty."},
    )
    eval_task_data: Annotated[str, SameRun()] = field(
        default="", metadata={"help": "Folder with the files of these tasks; empty: from the Hub."}
    )
    eval_task_rows: Annotated[int, SameRun()] = field(
        default=100, metadata={"help": "Rows of each task, of blimp of each of its 67 paradigms; 0 takes all."}
    )
    save_steps: Annotated[int, SameRun()] = field(default=500, metadata={"help": "Steps between checkpoints."})
    keep_checkpoints: Annotated[int, SameRun()] = field(
        default=2, metadata={"help": "Newest checkpoints to keep, besides the one of the lowest held-out loss."}
    )
    push_to: Annotated[str | None, SameRun()] = field(
        default=None, metadata={"help": "Hub id that gets each checkpoint as revision step-N; none if not set."}
    )

    def __post_init__(self) -> None:
        """Raise ValueError if a number that counts something is below 1."""
        counts = ("max_steps", "batch_rows", "context_length", "log_steps", "eval_steps", "save_steps")
        for name in (*counts, "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.row_length is not None and not 1 <= self.row_length <= self.context_length:
            raise ValueError(
                f"row_length={self.row_length} must be between 1 and context_length={self.context_length}, the "
                "model's longest sequence."
            )
        if self.until_val_bpb is not None and not (self.schedule == "wsd" and 0 <= self.decay_fraction < 1):
            raise ValueError(
                f"until_val_bpb={self.until_val_bpb} begins the fall of a learning rate that is at its peak until "
                f"then; it needs schedule=wsd, here {self.schedule}, and a decay_fraction from 0 to below 1, here "
                f"{self.decay_fraction}."
            )
        for name in ("patience", "profile_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0, which is none, or more.")

    @property
    def row_tokens(self) -> int:
        """Tokens of a training row."""
        return self.row_length or self.context_length

    @property
    def step_tokens(self) -> int:
        """Tokens of a step over all processes, as if every row were full."""
        return self.batch_rows * self.row_tokens
