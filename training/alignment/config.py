"""What can be set of SFT, DPO and GRPO; nothing here waits for torch or TRL."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from training.engine.config import PRECISION_HELP, TRACKER_HELP, Precision, Tracker
from training.stage.config import SameRun


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
        default=False, metadata={"help": "Show the data check and the first row as the model sees it, and stop there."}
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
        metadata={
            "help": "full: all weights; lora: adapters on all linear layers of a model in the precision of the run; "
            "qlora: these on a model in 4 bits."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    activation_checkpointing: Annotated[bool, SameRun()] = field(
        default=False, metadata={"help": "Compute activations twice to save memory; about 20%% slower."}
    )
    answer_temperature: float = field(
        default=0.0,
        metadata={
            "help": "Temperature, with a top-k of 50, that the saved model's generation_config.json asks for, so that "
            "a chat samples at it; 0 keeps how the model generates."
        },
    )
    precision: Precision = field(default="auto", metadata={"help": PRECISION_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of the order of rows, of LoRA's weights and of stories."})

    tracker: Annotated[Tracker, SameRun()] = field(default="none", metadata={"help": TRACKER_HELP})
    log_steps: Annotated[int, SameRun()] = field(
        default=10, metadata={"help": "Steps between lines of metrics.jsonl."}
    )
    eval_steps: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "Steps between evaluations; 0 evaluates at the end only."}
    )
    save_steps: Annotated[int, SameRun()] = field(
        default=500, metadata={"help": "Steps between checkpoints, of which the last is kept."}
    )

    def inputs(self) -> dict[str, str | list[str] | None]:
        """Return the settings that name a file, a folder or a Hub id to read."""
        return {"model": self.model, "data": self.data}


@dataclass(kw_only=True)
class SftConfig(AlignConfig):
    """Settings of the stage `sft`."""

    replay: str | None = field(
        default=None, metadata={"help": "Folder of the token shards that the model was pretrained on."}
    )
    replay_rows: int = field(
        default=0, metadata={"help": "Documents of --replay among the rows, with loss on every token; 0 is none."}
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Fill rows of max_length with several conversations, which do not see each other; a process then "
            "holds one row at once unless micro_batch_size says more, which pays with flash attention only."
        },
    )

    def inputs(self) -> dict[str, str | list[str] | None]:
        """Return the settings that name something to read."""
        return super().inputs() | {"replay": self.replay}


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
    reference: Literal["auto", "copy", "precomputed"] = field(
        default="auto",
        metadata={
            "help": "auto: the model with its adapters off, or a copy where all weights are trained; copy: always a "
            "copy; precomputed: no copy, but log-probabilities written down before the first step."
        },
    )


@dataclass(kw_only=True)
class GrpoConfig:
    """Settings of the stage `grpo`."""

    output_dir: str = field(metadata={"help": "Folder of the stage."})
    model: str = field(metadata={"help": "Folder or Hub id of the causal language model to start from, after SFT."})
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "A .jsonl, .json, .csv or .parquet file, or a Hub data set's id, with a column prompt: text or "
            "messages. Without it the stories' prompts."
        },
    )
    reward: list[str] | str = field(
        default_factory=list,
        metadata={
            "help": "Your reward functions as module:function, looked for in the working directory, whose rewards "
            "add up. Without it the stories' checkers."
        },
    )
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    prompts_per_step: int = field(default=8, metadata={"help": "Prompts asked a step, over all processes."})
    num_generations: int = field(default=8, metadata={"help": "Answers to each prompt, which are compared."})
    micro_batch_size: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "Answers a process learns from at once; 0 takes all of a step."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer in tokens."})
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the answers; if all are alike, nothing is learnt."}
    )
    learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate, constant after the warmup."})
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of the steps with linear warmup; 0 is none."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL to the model before the stage; 0 is none."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this length."})
    precision: Precision = field(default="auto", metadata={"help": PRECISION_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of prompts and answers."})
    tracker: Annotated[Tracker, SameRun()] = field(default="none", metadata={"help": TRACKER_HELP})
    log_steps: Annotated[int, SameRun()] = field(default=1, metadata={"help": "Steps between lines of metrics.jsonl."})
    save_steps: Annotated[int, SameRun()] = field(
        default=50, metadata={"help": "Steps between checkpoints, of which the last is kept."}
    )

    def __post_init__(self) -> None:
        """Raise ValueError if prompts have no reward: the stories' checkers know what a story was asked for only."""
        if self.prompts and not self.reward:
            raise ValueError(
                f"prompts={self.prompts} without a reward; name a function of your own that says how good an answer "
                "is, for example --reward rewards:brief for the function brief of rewards.py."
            )

    @property
    def rewards(self) -> list[str]:
        """The names of the reward functions; YAML may give one of them alone."""
        return [self.reward] if isinstance(self.reward, str) else self.reward

    def inputs(self) -> dict[str, str | list[str] | None]:
        """Return the settings that name something to read."""
        return {"model": self.model, "prompts": self.prompts, "reward": self.rewards}
