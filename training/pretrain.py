"""Pretrain a Scratch model on token shards: one loop, the same on a laptop and under `accelerate launch`.

    python -m training.pretrain --config training/recipes/quickstart/pretrain.yaml \\
        --data runs/quickstart/data --tokenizer runs/quickstart/tokenizer --output_dir runs/quickstart/pretrain

A step is defined by its global batch in tokens. Killed at any moment, the same command goes on from the last
checkpoint and ends, on a CPU, bit for bit where an undisturbed run ends.
"""

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from tqdm.auto import tqdm

from hf_scratch import ScratchForCausalLM
from hf_scratch.bits_per_byte import BitsPerByte, bits_per_byte, default_batch_tokens
from hf_scratch.hub.client import CheckpointPusher
from hf_scratch.load import load_tokenizer
from hf_scratch.token_ids import refuse_other_tokenizer
from training.engine.batches import IGNORE, Ahead, Batch, Rows
from training.engine.checkpoint import Progress, find_damage, load_checkpoint, load_latest, path_of, save_checkpoint
from training.engine.config import PretrainConfig, build_model
from training.engine.cost import utilisation_of
from training.engine.device import DTYPES, join_processes, resolve_precision, settle_precision
from training.engine.ending import Ending, ending_of, goes_on, leave_decay, why_another
from training.engine.held_out import affordable_tokens, sample_held_out
from training.engine.log import Interval, finish_tracker, in_short, start_tracker, tracker_options
from training.engine.loss import PretrainingLoss
from training.engine.mixture import data_inputs, open_data
from training.engine.optimizer import build_optimizers, learning_rate
from training.engine.out_of_memory import is_out_of_memory, random_state, set_random_state
from training.engine.parallel import Parallel, make_accelerator, whole_weights
from training.engine.save import make_pusher, save_model
from training.engine.stop_signal import StopSignal
from training.engine.token_shards import Shards
from training.stage.config import parse_config
from training.stage.files import cut_metrics, read_json, write_json
from training.stage.record import MEMORY, METRICS, command, open_stage

T = TypeVar("T")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(PretrainConfig, argv, __doc__)
    stage, precision = None, resolve_precision(config.precision)
    if join_processes().is_main_process:
        inputs = {"tokenizer": config.tokenizer} | data_inputs(config.data)
        stage = open_stage("pretrain", config, inputs, config.output_dir, {"max_steps": lambda: why_another(config)})
        precision = precision if stage.done else settle_precision(stage, config.precision)
    done, precision = broadcast_object_list([stage is not None and stage.done, precision])
    if done:
        return
    accelerator = make_accelerator(precision, **tracker_options(config.tracker, config.output_dir))
    start_tracker(accelerator, config, stage.record["fingerprint"] if stage else "")
    metrics = train(config, accelerator, Path(config.output_dir))
    finish_tracker(accelerator)
    if stage is not None:
        stage.finish(metrics)


def train(config: PretrainConfig, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to the end; save the model and return its figures."""
    tokenizer = load_tokenizer(config.tokenizer)
    rows, held_out = open_data(config.data, config.row_tokens, config.seed, config.pack_documents)
    refuse_other_tokenizer(held_out.tokenizer, tokenizer, " ".join(config.data), accelerator.print)
    trainer = Trainer(config, accelerator, folder, build_model(config, held_out.vocab_size, tokenizer), held_out)
    trainer.resume()
    trainer.progress.val_tokens = trainer.progress.val_tokens or affordable_tokens(config)
    sizes = (trainer.progress.val_tokens, config.row_tokens)
    trainer.held_out = sample_held_out(held_out, *sizes, tokenizer, accelerator.print)
    if config.push_to and accelerator.is_main_process:
        trainer.pusher = make_pusher(config.push_to, trainer.unwrapped, tokenizer, folder / "to_push")
    try:
        trainer.loop(rows)
    finally:
        if trainer.pusher:
            trainer.pusher.close()
    if config.patience:
        trainer.take_best()
    weights = trainer.weights()
    if accelerator.is_main_process:
        save_model(trainer.unwrapped, tokenizer, folder / "model", weights)
    return trainer.summary()


class Trainer:
    """The training loop and the state that goes with it."""

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        folder: Path,
        model: ScratchForCausalLM,
        held_out: Shards,
    ) -> None:
        self.config, self.accelerator, self.folder, self.held_out = config, accelerator, folder, held_out
        self.unwrapped, self.parallel = model, Parallel(accelerator)
        if config.batch_rows % self.parallel.data_count:
            raise ValueError(
                f"batch_rows={config.batch_rows} cannot be shared out evenly over {self.parallel.data_count} parts of "
                "a step, one for each copy or shard of the model; take a multiple, or fewer processes."
            )
        self.model = self.parallel.wrap(PretrainingLoss(model))
        self.precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
        dtype, betas = DTYPES[self.precision], (config.adam_beta1, config.adam_beta2)
        rates = (config.learning_rate, config.weight_decay, betas)
        self.optimizers = build_optimizers(model, config.optimizer, *rates, dtype)
        self.ahead = Ahead() if accelerator.device.type == "cuda" else None
        self.progress, self.ending = Progress(micro_batch_rows=config.micro_batch_rows), Ending()
        self.interval = Interval()
        self.last: dict[str, float] = {}  # newest value of each metric
        self.bad_steps = 0
        self.pusher: CheckpointPusher | None = None
        accelerator.print(
            f"{model.num_parameters():,} parameters ({model.num_parameters(exclude_embeddings=True):,} without "
            f"embedding), {self.parallel.describe()}, precision {self.precision}"
        )

    def loop(self, rows: Rows) -> None:
        """Train to the end; log, evaluate and save on the way."""
        config, progress, ending = self.config, self.progress, self.ending
        show: dict[str, Any] = {"initial": progress.step, "unit": "step", "dynamic_ncols": True}
        show["disable"] = None if self.accelerator.is_main_process else True
        with StopSignal(self.accelerator.num_processes > 1) as stop_signal, tqdm(**show) as bar:
            self.find_micro_batch()
            while not ending.over(config, progress.step):
                bar.total = ending.last_step(config)
                started = time.perf_counter()
                lr = self.set_learning_rate()
                loss, tokens, grad_norm = self.train_step(rows)
                progress.step += 1
                progress.tokens += tokens
                progress.time_s += time.perf_counter() - started
                self.interval.add(loss, tokens, time.perf_counter() - started)
                bar.update()

                evaluate = progress.step == ending.last_step(config) or progress.step % config.eval_steps == 0
                if evaluate or progress.step % config.log_steps == 0:
                    self.log(lr, grad_norm, evaluate)
                    bar.set_postfix_str(in_short(self.last))
                    self.interval = Interval()
                if missed := ending.at_bound(config, progress.step):
                    self.say(missed)
                stop, over = self.parallel.any(stop_signal.came), ending.over(config, progress.step)
                wanted = ending.asks_for_checkpoint(config, progress.step)
                if over or stop or wanted or progress.step % config.save_steps == 0:
                    self.save()
                if stop and not over:
                    # A launcher ends all processes soon after the first has left, and one of them is still writing.
                    self.accelerator.wait_for_everyone()
                    sys.exit(f"stopped after step {progress.step}; the same command goes on from there.")

    def set_learning_rate(self) -> float:
        """Set and return the learning rate of the step that comes."""
        config = self.config
        shape = (config.learning_rate, config.warmup_steps, config.schedule, config.decay_fraction)
        lr = learning_rate(self.progress.step, self.ending.last_step(config), *shape)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def train_step(self, rows: Rows) -> tuple[float, int, float]:
        """Take one optimizer step; return mean loss in nats a token, tokens learnt from and gradient norm.

        A step whose loss or gradient is not finite is skipped: it learns from no tokens.

        Raises:
            ValueError: Not even one row fits into memory, or the loss was not finite three times in a row.
        """
        alone = self.accelerator.num_processes == 1
        loss, total = self.halve_until_it_fits(lambda: self.gradients(rows), alone)
        grad_norm = float(self.parallel.clip_grad_norm(self.model, self.config.max_grad_norm))
        mean_loss = float(self.accelerator.reduce(loss, "mean"))
        if math.isfinite(mean_loss) and math.isfinite(grad_norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.bad_steps = 0
        else:
            self.refuse_step(mean_loss, grad_norm)
            return math.nan, 0, grad_norm
        return mean_loss, total, grad_norm

    def gradients(self, rows: Rows) -> tuple[torch.Tensor, int]:
        """Compute the gradient of the step's mean loss; return this process's share of the loss, and the tokens.

        The loss is divided by the tokens of the whole step, not of each micro-batch, so accumulation and processes
        do not change it.
        """
        self.model.zero_grad(set_to_none=True)
        micro_batches = self.micro_batches(rows)
        counted = torch.tensor(sum(int((b["labels"] != IGNORE).sum()) for b in micro_batches))
        total = int(self.parallel.sum(counted))
        loss = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(micro_batches):
            if i == len(micro_batches) - 1:
                loss += self.backward(batch, total)
            else:
                with self.parallel.no_sync(self.model):
                    loss += self.backward(batch, total)
        return loss, total

    def backward(self, batch: Batch, total: int) -> torch.Tensor:
        """Add a micro-batch's gradient and return its share of the step's mean loss."""
        batch = {key: tensor.to(self.accelerator.device, non_blocking=True) for key, tensor in batch.items()}
        with self.accelerator.autocast():
            loss = self.model(**batch, num_items=total)
        # DDP and FSDP2 take the mean over processes where the sum is wanted.
        loss = loss * self.parallel.data_count
        self.accelerator.backward(loss)
        return loss.detach()

    def micro_batches(self, rows: Rows) -> list[Batch]:
        """Return this process's share of the step's rows, in pieces that it can hold at once."""
        mine = self.my_rows()
        size = self.progress.micro_batch_rows or len(mine)
        pieces = [mine[i : i + size] for i in range(0, len(mine), size)]
        if self.ahead is None:
            return [rows.batch(piece) for piece in pieces]
        return self.ahead(rows, pieces, [piece + self.config.batch_rows for piece in pieces])

    def my_rows(self) -> np.ndarray:
        """Return the numbers of this process's rows of the step that comes."""
        first = self.progress.step * self.config.batch_rows
        return np.arange(first, first + self.config.batch_rows)[self.parallel.data_index :: self.parallel.data_count]

    def find_micro_batch(self) -> None:
        """Find the most rows that fit into memory: what the settings, a checkpoint or a shortage before say, else by
        trying. All processes take the smallest of theirs.

        The step's accumulation is the rows of a process over the rows that fit.
        """
        noted = read_json(self.folder / MEMORY).get("micro_batch_rows", 0)
        limits = [rows for rows in (self.config.micro_batch_rows, self.progress.micro_batch_rows, noted) if rows]
        if limits:
            self.progress.micro_batch_rows = min(limits)
        else:
            self.try_micro_batches()
        fits = torch.tensor([self.progress.micro_batch_rows], device=self.accelerator.device)
        self.progress.micro_batch_rows = int(self.accelerator.gather(fits).min())

    def try_micro_batches(self) -> None:
        """Find the most rows that fit into this process's memory.

        Raises:
            ValueError: The model is sharded.
        """
        if self.parallel.mesh is not None:
            raise ValueError(
                "micro_batch_rows is not set, and what fits cannot be tried while a model is sharded; "
                "`python -m training.plan` says what will fit."
            )
        mine = self.my_rows()
        self.progress.micro_batch_rows = len(mine)
        tokens = torch.zeros(self.config.row_tokens, dtype=torch.long, device=self.accelerator.device)
        # The room that the optimizers' two averages will take after the first step.
        reserved = [torch.empty_like(param) for param in self.unwrapped.parameters() for _ in range(2)]

        def try_rows() -> None:
            full = tokens.expand(self.progress.micro_batch_rows, -1)
            with self.accelerator.autocast():
                loss = PretrainingLoss(self.unwrapped)(input_ids=full, labels=full, num_items=full.numel())
            loss.backward()

        self.halve_until_it_fits(try_rows)
        del reserved
        self.unwrapped.zero_grad(set_to_none=True)

    def halve_until_it_fits(self, work: Callable[[], T], alone: bool = True) -> T:
        """Do the work; where memory runs out, halve the micro-batch and do it again from the same random state.

        Others that wait in the middle of it, which is what not `alone` says, cannot do it again: then the half is
        noted for the next start, which goes on from the last checkpoint.

        Raises:
            ValueError: Not even one row fits.
        """
        rng = random_state()
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except clause, whose traceback would keep the tensors of the failed step alive.
            held = self.progress.micro_batch_rows or len(self.my_rows())
            if held == 1:
                raise ValueError(
                    f"memory runs out at step {self.progress.step} with one row of {self.config.row_tokens} "
                    "tokens at once; take a smaller model or row_length."
                )
            if not alone:
                write_json(self.folder / MEMORY, {"micro_batch_rows": held // 2})
                raise ValueError(
                    f"memory ran out on process {self.accelerator.process_index} at step {self.progress.step} with "
                    f"{held} rows at once; the same command goes on from the last checkpoint with {held // 2}."
                )
            self.progress.micro_batch_rows = held // 2
            self.model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            set_random_state(rng)
            tqdm.write(f"memory ran out with {held} rows at once; going on with {held // 2} of the same batch")

    def refuse_step(self, loss: float, grad_norm: float) -> None:
        """Count a step whose loss or gradient is not finite; it never reaches the weights.

        Raises:
            ValueError: The third in a row.
        """
        self.bad_steps += 1
        self.progress.skipped_steps += 1
        step = self.progress.step
        self.say(f"step {step}: loss {loss}, gradient norm {grad_norm}; the step is skipped")
        if self.bad_steps == 3:
            raise ValueError(
                f"steps {step - 2} to {step} had no finite loss (rows up to {(step + 1) * self.config.batch_rows}); "
                f"lower learning_rate={self.config.learning_rate}. Any checkpoint in "
                f"{self.folder / 'checkpoints'} is good."
            )

    def log(self, lr: float, grad_norm: float, evaluate: bool) -> None:
        """Write a line of metrics.jsonl, with the held-out loss if it is time for it."""
        line = self.interval.line(self.progress, lr, grad_norm)
        layout = (self.accelerator.device, self.accelerator.num_processes)
        mfu = utilisation_of(*layout, line["tokens_per_s"], self.unwrapped.config, self.config.row_tokens)
        line |= {} if mfu is None else {"mfu": mfu}
        if evaluate:
            held_out = self.evaluate()
            line |= {"val_loss": held_out.nats_per_token, "val_bpb": held_out.bits_per_byte}
            self.say(
                f"step {self.progress.step}: train loss {line['train_loss'] or math.nan:.4f}, "
                f"held-out loss {held_out.nats_per_token:.4f}, {held_out.bits_per_byte:.4f} bits per byte, "
                f"{self.progress.time_s:.0f} s"
            )
            for said in self.ending.note(self.config, self.progress.step, line["val_loss"], line["val_bpb"]):
                self.say(said)
        self.last |= {key: value for key, value in line.items() if value is not None}
        self.last |= {"val_step": self.progress.step} if evaluate else {}
        if self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({key: value for key, value in line.items() if value is not None}, step=line["step"])

    def say(self, line: str) -> None:
        """Print a line above the progress bar, once."""
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def evaluate(self) -> BitsPerByte:
        """Return loss and bits per byte on the held-out text, in the precision of training."""
        text = (self.held_out.tokens, self.held_out.starts, self.held_out.num_bytes)
        length, share = self.config.row_tokens, (self.parallel.data_index, self.parallel.data_count)
        where: dict[str, Any] = {"device": self.accelerator.device, "share": share, "add_up": self.parallel.sum}
        # In several batches however short the text: each pads its windows to the longest.
        where["batch_tokens"] = min(default_batch_tokens(self.unwrapped.config.vocab_size), len(text[0]) // 16)
        with whole_weights(self.model), self.accelerator.autocast():
            return bits_per_byte(self.unwrapped, *text, length, stride=length, **where)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole weights by name, the tied LM head once; empty on all but the main process."""
        named = {name: param.detach() for name, param in self.unwrapped.named_parameters()}
        return self.parallel.gather(named) or {}

    def save(self) -> None:
        """Write a checkpoint of everything that the run depends on."""
        weights = self.weights()
        optimizers = self.parallel.gather([optimizer.state_dict() for optimizer in self.optimizers])
        if not self.accelerator.is_main_process:
            return
        state = {
            "progress": asdict(self.progress),
            "ending": asdict(self.ending) | {"last_step": self.ending.last_step(self.config)},
            "interval": asdict(self.interval),
            "last": self.last,
            "optimizers": optimizers,
            "random": random_state(),
        }
        evaluated_now = self.last.get("val_step") == self.progress.step
        saved = save_checkpoint(
            self.folder / "checkpoints",
            self.progress.step,
            weights,
            state,
            self.config.keep_checkpoints,
            val_loss=self.last.get("val_loss") if evaluated_now else None,
            pinned=self.ending.pinned(self.config),
        )
        if self.pusher:
            self.pusher.push(self.progress.step, saved / "model.safetensors")

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one, and drop the metrics that came after it."""
        found = load_latest(self.folder / "checkpoints", functools.partial(goes_on, self.config))
        if found is not None:
            weights, state = found
            self.parallel.load_weights(self.unwrapped, weights)
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                self.parallel.load_optimizer(optimizer, saved)
            # Earlier checkpoints have the CPU's alone.
            set_random_state(state["random"] if "random" in state else {"cpu": state["torch_rng"]})
            self.progress, self.interval = Progress(**state["progress"]), Interval(**state["interval"])
            self.ending = ending_of(state)
            self.last = state["last"]
            self.accelerator.print(f"goes on from step {self.progress.step}")
        self.accelerator.wait_for_everyone()  # until all have read
        if self.accelerator.is_main_process:
            if not self.ending.over(self.config, self.progress.step):
                leave_decay(self.folder, self.progress.step)
            cut_metrics(self.folder / METRICS, self.progress.step)

    def take_best(self) -> None:
        """Put the weights of the lowest held-out loss in the place of the last ones, with their figures."""
        best = path_of(self.folder / "checkpoints", self.ending.best_step)
        if self.ending.best_step in (0, self.progress.step):
            return
        if problem := find_damage(best):
            self.say(f"{best} is damaged ({problem}); the model is that of step {self.progress.step}")
            return
        weights, state = load_checkpoint(best)
        self.parallel.load_weights(self.unwrapped, weights)
        self.last = state["last"]

    def summary(self) -> dict[str, Any]:
        """Return the run's figures for its record."""
        return {
            "parameters": self.unwrapped.num_parameters(),
            "non_embedding_parameters": self.unwrapped.num_parameters(exclude_embeddings=True),
            **asdict(self.progress),
            **{key: self.last.get(key) for key in ("train_loss", "val_loss", "val_bpb")},
            "val_tokens": len(self.held_out.tokens),
            "precision": self.precision,
            **self.ending.figures(self.config),
        }


if __name__ == "__main__":
    main()
