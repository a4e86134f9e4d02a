"""Pretraining from its first step to its last: the log, the evaluations and the checkpoints on the way."""

import contextlib
import functools
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from hf_scratch.bits_per_byte import BitsPerByte, bits_per_byte, default_batch_tokens
from hf_scratch.hub.client import CheckpointPusher
from hf_scratch.load import load_tokenizer
from hf_scratch.token_ids import refuse_other_tokenizer
from training.engine.batches import Rows
from training.engine.checkpoint import (
    MANIFEST,
    SHARDS,
    STATE,
    Progress,
    find_damage,
    load_checkpoint,
    load_latest,
    path_of,
    save_checkpoint,
)
from training.engine.config import PretrainConfig
from training.engine.cost import utilisation_of
from training.engine.device import on_main, resolve_precision, settle_precision
from training.engine.ending import Ending, ending_of, goes_on, leave_decay, why_another
from training.engine.held_out import affordable_tokens, sample_held_out
from training.engine.init_from import compare_with_before, write_before
from training.engine.initial_weights import build_model
from training.engine.log import Interval, in_short
from training.engine.micro_batch import random_state, set_random_state
from training.engine.mixture import data_inputs, held_out_by_folder, open_data
from training.engine.optimizer import learning_rate
from training.engine.parallel import make_accelerator, whole_weights
from training.engine.profiler import Profiler
from training.engine.save import save_model, write_files
from training.engine.sharded import load_optimizers, save_shards, take_shards
from training.engine.stop_signal import StopSignal
from training.engine.token_shards import Shards
from training.engine.tracker import finish_tracker, require_tracker, start_tracker
from training.engine.train_step import TrainStep
from training.stage.files import append_metrics, cut_metrics
from training.stage.record import METRICS, TASK, Stage, open_stage

Score = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


def run(config: PretrainConfig, score: Score | None = None) -> None:
    """Run the stage: open its folder, train, and write the record.

    Args:
        score: Returns the figure of each of `eval_tasks`.
    """
    inputs = {"tokenizer": config.tokenizer, "init_from": config.init_from} | data_inputs(config.data)

    def open_run() -> tuple[Stage, Literal["fp32", "bf16"]]:
        stage = open_stage("pretrain", config, inputs, config.output_dir, {"max_steps": lambda: why_another(config)})
        return stage, resolve_precision(config.precision) if stage.done else settle_precision(stage, config.precision)

    stage, precision = on_main(open_run)
    if stage.done:
        return
    require_tracker(config.tracker)
    accelerator = make_accelerator(precision)
    metrics = train(config, accelerator, Path(config.output_dir), score)
    finish_tracker(accelerator)
    if accelerator.is_main_process:
        stage.finish(metrics)


def train(config: PretrainConfig, accelerator: Accelerator, folder: Path, score: Score | None) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to the end; save the model and return its figures."""
    tokenizer = load_tokenizer(config.tokenizer)
    rows, held_out = open_data(config.data, config.row_tokens, config.seed, config.pack_documents, folder)
    refuse_other_tokenizer(held_out.tokenizer, tokenizer, " ".join(config.data), accelerator.print)
    model = build_model(config, held_out.vocab_size, tokenizer)
    trainer = PretrainingRun(config, accelerator, folder, model, held_out)
    trainer.score = functools.partial(score, model, tokenizer) if score else None
    trainer.resume()
    start_tracker(accelerator, config, trainer.progress.step)
    trainer.progress.val_tokens = trainer.progress.val_tokens or affordable_tokens(config)
    sizes = (trainer.progress.val_tokens, config.row_tokens)
    trainer.held_out = sample_held_out(held_out, *sizes, tokenizer, accelerator.print)
    trainer.write_files = functools.partial(write_files, trainer.unwrapped, tokenizer)
    folders = held_out_by_folder(config.data) if config.init_from else {}
    parts = {name: sample_held_out(text, *sizes, tokenizer, lambda line: None) for name, text in folders.items()}
    if parts and not trainer.progress.step:
        trainer.note_before(parts)
    if config.push_to and accelerator.is_main_process:
        trainer.pusher = CheckpointPusher(config.push_to, folder / "to_push", leave_out=(STATE, SHARDS, MANIFEST))
    try:
        trainer.loop(rows)
    finally:
        if trainer.pusher:
            trainer.pusher.close()
    if config.patience:
        trainer.take_best()
    by_data = trainer.compare_with_before(parts)
    weights = trainer.weights()
    if accelerator.is_main_process:
        save_model(trainer.unwrapped, tokenizer, folder / "model", weights)
    return trainer.summary() | by_data


class PretrainingRun(TrainStep):
    """The run: steps to the end, and the log, evaluations and checkpoints on the way."""

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        folder: Path,
        model: ScratchForCausalLM,
        held_out: Shards,
    ) -> None:
        super().__init__(config, accelerator, folder, model)
        self.held_out, self.ending, self.interval = held_out, Ending(), Interval()
        self.last: dict[str, float] = {}  # newest value of each metric
        self.pusher: CheckpointPusher | None = None
        self.score: Callable[[], dict[str, float]] | None = None
        self.write_files: Callable[[Path], None] = lambda folder: None  # what makes a checkpoint a model's folder
        accelerator.print(
            f"{model.num_parameters():,} parameters ({model.num_parameters(exclude_embeddings=True):,} without "
            f"embedding), {self.parallel.describe()}, precision {self.precision}, {self.how_compiled}"
        )

    def loop(self, rows: Rows) -> None:
        """Train to the end; log, evaluate and save on the way."""
        config, progress, ending = self.config, self.progress, self.ending
        show: dict[str, Any] = {"initial": progress.step, "unit": "step", "dynamic_ncols": True}
        show["disable"] = None if self.accelerator.is_main_process else True
        with StopSignal(self.accelerator.num_processes > 1) as stop_signal, tqdm(**show) as bar:
            self.find_micro_batch()
            profiler = Profiler(config.profile_steps if self.accelerator.is_main_process else 0, self.folder)
            while not ending.over(config, progress.step):
                bar.total = ending.last_step(config)
                started = time.perf_counter()
                lr = self.set_learning_rate()
                with profiler.step():
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

    def log(self, lr: float, grad_norm: float, evaluate: bool) -> None:
        """Write a line of metrics.jsonl, with the held-out loss if it is time for it."""
        line = self.interval.line(self.progress, lr, grad_norm)
        layout = (self.accelerator.device, self.accelerator.num_processes)
        mfu = utilisation_of(*layout, line["tokens_per_s"], self.unwrapped.config, self.config.row_tokens)
        line |= {} if mfu is None else {"mfu": mfu}
        if evaluate:
            held_out = self.evaluate()
            tasks = self.score_tasks()
            line |= {"val_loss": held_out.nats_per_token, "val_bpb": held_out.bits_per_byte}
            line |= {f"{TASK}{name}": score for name, score in tasks.items()}
            self.say(
                f"step {self.progress.step}: train loss {line['train_loss'] or math.nan:.4f}, "
                f"held-out loss {held_out.nats_per_token:.4f}, {held_out.bits_per_byte:.4f} bits per byte, "
                f"{''.join(f'{name} {score:.3f}, ' for name, score in tasks.items())}{self.progress.time_s:.0f} s"
            )
            for said in self.ending.note(self.config, self.progress.step, line["val_loss"], line["val_bpb"]):
                self.say(said)
        self.last |= {key: value for key, value in line.items() if value is not None}
        self.last |= {"val_step": self.progress.step} if evaluate else {}
        if self.accelerator.is_main_process:
            append_metrics(self.folder / METRICS, line)
        self.accelerator.log({key: value for key, value in line.items() if value is not None}, step=line["step"])

    def evaluate(self, shards: Shards | None = None) -> BitsPerByte:
        """Return loss and bits per byte on the run's held-out text, or another one, in the precision of training."""
        shards = shards or self.held_out
        text = (shards.tokens, shards.starts, shards.num_bytes)
        length, share = self.config.row_tokens, (self.parallel.data_index, self.parallel.data_count)
        where: dict[str, Any] = {"device": self.accelerator.device, "share": share, "add_up": self.parallel.sum}
        # In several batches however short the text: each pads its windows to the longest.
        most = default_batch_tokens(self.unwrapped.config.vocab_size, self.accelerator.device.type)
        where["batch_tokens"] = min(most, len(text[0]) // 16)
        with self.for_scoring():
            return bits_per_byte(self.unwrapped, *text, length, stride=length, **where)

    def score_tasks(self) -> dict[str, float]:
        """Return the figure of each of `eval_tasks`, which every process computes; training goes on as if none had."""
        if self.score is None:
            return {}
        was_training, random = self.unwrapped.training, random_state()
        # The harness draws a progress bar for each of its steps.
        with self.for_scoring(), contextlib.redirect_stderr(io.StringIO()):
            found = self.score()
        set_random_state(random)
        self.unwrapped.train(was_training)
        return found

    @contextlib.contextmanager
    def for_scoring(self) -> Iterator[None]:
        """Let the model be used beside training, in its precision; not compiled, since texts have many lengths."""
        stance = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        with whole_weights(self.model), self.accelerator.autocast(), stance:
            yield

    def note_before(self, parts: dict[str, Shards]) -> None:
        """Measure and write down what the model of `init_from` needs for the held-out text of each data folder."""
        found = {name: self.evaluate(shards) for name, shards in parts.items()}
        for name, one in found.items():
            self.say(f"before the first step: {one.bits_per_byte:.4f} bits per byte of {name}")
        if self.accelerator.is_main_process:
            write_before(self.folder, found)

    def compare_with_before(self, parts: dict[str, Shards]) -> dict[str, Any]:
        """Return, for the record, what the model needs for the held-out text of each data folder now, and before."""
        if not parts:
            return {}
        found = compare_with_before(self.folder, {name: self.evaluate(one) for name, one in parts.items()})
        for name, figures in found.items():
            self.say(f"{name}: {figures['val_bpb_before']:.4f} bits per byte before, {figures['val_bpb']:.4f} now")
        return {"by_data": found}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole weights by name, the tied LM head once; empty on all but the main process."""
        named = {name: param.detach() for name, param in self.unwrapped.named_parameters()}
        return self.parallel.gather(named)

    def save(self) -> None:
        """Write a checkpoint of everything that the run depends on."""
        weights = self.weights()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        shards = take_shards(optimizers)
        if not self.accelerator.is_main_process:
            if shards:
                save_shards(shards, None)
            return

        def write_files(folder: Path) -> None:
            self.write_files(folder)
            if shards:
                save_shards(shards, folder / SHARDS)

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
            write_files=write_files,
        )
        if self.pusher:
            self.pusher.push(self.progress.step, saved)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one, and drop the metrics that came after it."""
        found = load_latest(self.folder / "checkpoints", functools.partial(goes_on, self.config))
        if found is not None:
            weights, state = found
            self.parallel.load_weights(self.unwrapped, weights)
            shards = path_of(self.folder / "checkpoints", state["progress"]["step"]) / SHARDS
            load_optimizers(self.optimizers, state["optimizers"], shards)
            # Checkpoints of earlier versions hold the random state of the CPU only.
            set_random_state(state["random"] if "random" in state else {"cpu": state["torch_rng"]})
            self.progress, self.interval = Progress.read(state["progress"]), Interval(**state["interval"])
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
            **{key: value for key, value in self.last.items() if key.startswith(TASK)},
            "val_tokens": len(self.held_out.tokens),
            "precision": self.precision,
            **self.ending.figures(self.config),
        }
