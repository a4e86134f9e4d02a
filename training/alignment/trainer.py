"""How SFT and DPO train: what TRL is told, a step in micro-batches, the order of rows, the log, and resuming.

The training itself is TRL's. This file gives it what its defaults would get wrong for a small model or for a CPU. A
step is one global batch; how many of its rows are held at once is a detail, which is halved when memory runs out.
"""

import contextlib
import math
import shutil
from collections import UserList
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer

from training.alignment.config import AlignConfig, GrpoConfig
from training.engine.device import DTYPES, on_cpu, resolve_precision, say
from training.engine.micro_batch import until_it_fits
from training.engine.optimizer import AsOne, build_optimizers
from training.engine.tracker import finish_tracker, start_tracker
from training.stage.files import append_metrics, cut_metrics, read_json
from training.stage.record import METRICS, Stage

CHECKPOINTS = "checkpoints"
IN_TRACKER = {"loss": "train_loss", "eval_loss": "val_loss"}
POOL = 50  # batches whose rows are sorted by length together: little padding, and still a random mixture


# ---- what TRL is told ----


def common_arguments(config: AlignConfig | GrpoConfig) -> dict[str, Any]:
    """Return what TRL is told alike in SFT, DPO and GRPO."""
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


# ---- a step in micro-batches ----


class StepRows(UserList[dict[str, Any]]):
    """The rows of a step as they come from the data set, before they are padded; nothing looks into them."""


class WholeStep(Trainer):
    """Lets a trainer take one global batch a step in micro-batches, halved when memory runs out.

    Rows are padded a micro-batch at a time. Each counts by its share of the step, in tokens where the loss is a mean
    of tokens and in rows where it is a mean of rows, so that their size does not change the step.
    """

    data_collator: Any
    optimizer: Any
    micro_batch_size: int
    muon: torch.dtype | None = None  # of its iterations; None trains with AdamW alone
    share = 1.0  # of the micro-batch, in the rows of the step
    first_micro_batch = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer, by the same rules as in pretraining where Muon is asked for."""
        if self.muon and self.optimizer is None:
            args = self.args
            betas = (args.adam_beta1, args.adam_beta2)
            parts = build_optimizers(
                model or self.model, "muon", args.learning_rate, args.weight_decay, betas, self.muon
            )
            self.optimizer = AsOne(parts)
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader:
        """Return batches of rows that are not padded yet."""
        collate, self.data_collator = self.data_collator, StepRows
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the work is not estimated."""
        return 0

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of a step with what depends on the step as a whole."""
        return rows

    def training_step(self, model: Any, inputs: StepRows, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradient of a step and return its loss, with smaller micro-batches if memory runs out.

        Raises:
            ValueError: One row is too much, or another process would wait for this one.
        """
        rows = self.prepare_rows(inputs.data)
        figures = {name: list(values) for name, values in self._metrics["train"].items()}

        def halve() -> None:
            self.halve(len(rows))
            self._metrics["train"].clear()
            self._metrics["train"].update({name: list(values) for name, values in figures.items()})
            model.zero_grad(set_to_none=True)

        return until_it_fits(lambda: self.accumulate(model, rows), halve)

    def accumulate(self, model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
        """Do forward and backward for each micro-batch of the step."""
        micro_batches = [rows[i : i + self.micro_batch_size] for i in range(0, len(rows), self.micro_batch_size)]
        batches = [self.data_collator(micro_batch) for micro_batch in micro_batches]
        tokens = self._get_num_items_in_batch(batches, self.args.device)
        loss = torch.zeros((), device=self.args.device)
        for number, (micro_batch, batch) in enumerate(zip(micro_batches, batches, strict=True), start=1):
            self.share, self.first_micro_batch = len(micro_batch) / len(rows), number == 1
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss += super().training_step(model, batch, tokens)
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a batch's loss; in training, the mean of a micro-batch's rows counts by its share of the step."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        mean_of_tokens = kwargs.get("num_items_in_batch") is not None
        return loss * self.share if model.training and not mean_of_tokens else loss

    def halve(self, rows: int) -> None:
        """Halve the micro-batch."""
        size = min(self.micro_batch_size, rows)
        if size == 1:
            raise ValueError(
                "memory ran out with a single row at once; lower max_length, or use --tune lora or "
                "--activation_checkpointing true."
            )
        if PartialState().num_processes > 1:
            raise ValueError(
                f"memory ran out with {size} rows a process; start again with --micro_batch_size {size // 2}, "
                "which does not change the global batch."
            )
        self.micro_batch_size = self.args.per_device_eval_batch_size = size // 2
        tqdm.write(f"step {self.state.global_step + 1}: memory ran out with {size} rows at once; now {size // 2}")


# ---- the run ----


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
    trainer: Any, lengths: Sequence[int], config: AlignConfig, stage: Stage, measures: Sequence[str]
) -> dict[str, Any]:
    """Train to the last step, from the last checkpoint if there is one, and return the last figures.

    Args:
        lengths: Tokens of each row of the trainer's data.
        measures: What the trainer logs that metrics.jsonl shall have, besides what every run has.
    """
    num_rows = config.max_steps * config.batch_size or max(1, round(config.epochs * len(lengths)))
    trainer.muon = DTYPES[resolve_precision(config.precision)] if config.optimizer == "muon" else None
    trainer.micro_batch_size = config.micro_batch_size or config.batch_size // PartialState().num_processes
    order = row_order(np.array(lengths), num_rows, config.batch_size, config.seed)
    trainer.train_dataset = trainer.train_dataset.select(order)
    return run_trainer(trainer, config, stage, measures, config.batch_size / len(lengths))


def run_trainer(
    trainer: Trainer, config: AlignConfig | GrpoConfig, stage: Stage, measures: Sequence[str], epochs_per_step: float
) -> dict[str, Any]:
    """Train from the last checkpoint, if there is one, evaluate at the end, and return the last figures."""
    log = MetricsLog(stage.folder / METRICS, measures, epochs_per_step, trainer.accelerator)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(log)
    checkpoint = last_checkpoint(stage.folder / CHECKPOINTS)
    start_tracker(trainer.accelerator, config, step_of(checkpoint) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    finish_tracker(trainer.accelerator)
    return {"steps": trainer.state.global_step, **log.last}


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint of a Trainer and remove what was cut off while being written."""
    found = sorted(folder.glob("checkpoint-*"), key=step_of)
    # The state is the last file that the Trainer writes; killed meanwhile, it leaves half of it.
    complete = [path for path in found if read_json(path / "trainer_state.json")]
    for path in set(found) - set(complete):
        shutil.rmtree(path, ignore_errors=True)  # each process of a run tries
    if not complete:
        return None
    say(f"goes on from step {step_of(complete[-1])}")
    return str(complete[-1])


def step_of(checkpoint: Path | str) -> int:
    """Return the step that a Trainer's checkpoint was written after."""
    return int(str(checkpoint).rpartition("-")[2])


class MetricsLog(ProgressCallback):
    """Writes metrics.jsonl, tells the tracker and draws the progress bar; the Trainer's prints every figure of a line.

    The accelerator's tracker gets the names of pretraining for what is the same there.
    """

    def __init__(self, path: Path, measures: Sequence[str], epochs_per_step: float, accelerator: Accelerator) -> None:
        super().__init__()
        self.path, self.epochs_per_step, self.accelerator = path, epochs_per_step, accelerator
        names = ["loss", "eval_loss", "learning_rate", "grad_norm", *measures]
        self.names = {name: "lr" if name == "learning_rate" else name for name in names}
        self.last: dict[str, Any] = {}  # newest value of each figure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that will be trained again."""
        self.current_step = 0
        state.compute_steps(args, state.max_steps)  # a checkpoint brings the intervals that it was trained with
        if not state.is_world_process_zero:
            return
        self.training_bar = tqdm(total=state.max_steps, unit="step", disable=None, dynamic_ncols=True)
        cut_metrics(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the last step logged, whatever its number."""
        super().on_step_end(args, state, control, **kwargs)
        control.should_log |= state.global_step == state.max_steps

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Draw no second bar for an evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line; what was not measured at it is null.

        Raises:
            ValueError: The loss is not finite.
        """
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        line = {"step": state.global_step, "epoch": round(state.global_step * self.epochs_per_step, 4)}
        line |= {name: logs.get(key) for key, name in self.names.items()}
        append_metrics(self.path, line)
        measured = {key: value for key, value in line.items() if value is not None}
        self.accelerator.log({IN_TRACKER.get(key, key): value for key, value in measured.items()}, step=line["step"])
        self.last |= measured
        loss = logs.get("loss", logs.get("eval_loss"))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {state.global_step}; lower learning_rate={args.learning_rate}."
            )
        if "eval_loss" in logs:
            tqdm.write(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
        elif self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {loss:.3f}")
