"""Pretrain a Scratch model on token shards: one loop, the same on a laptop and under `accelerate launch`.

    python -m training.pretrain --config training/recipes/quickstart/pretrain.yaml \\
        --data runs/quickstart/data --tokenizer runs/quickstart/tokenizer --output_dir runs/quickstart/pretrain

A step is defined by its global batch in tokens. Killed at any moment, the same command goes on from the last
checkpoint and ends, on a CPU, bit for bit where an undisturbed run ends.
"""

import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.bits_per_byte import BitsPerByte, bits_per_byte
from training.checkpoint import load_latest, save_checkpoint
from training.data.batches import IGNORE, Batch, Shards
from training.data.mixture import Rows, data_inputs, open_data
from training.hardware import mixed_precision
from training.optimizer import build_optimizers, learning_rate
from training.save import save_model
from training.stage import METRICS, command, cut_metrics, open_stage, parse_config


@dataclass(kw_only=True)
class PretrainConfig:
    """Settings of the stage `pretrain`."""

    output_dir: str = field(metadata={"help": "Folder of the run."})
    data: list[str] = field(
        metadata={"help": "Folder or URL of token shards; several mix as FOLDER=WEIGHT, 1 being one pass an epoch."}
    )
    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer that made the shards."})

    hidden_size: int = field(default=768, metadata={"help": "Width of the model."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of SwiGLU; 8/3 hidden if not set."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Number of decoder layers."})
    num_attention_heads: int = field(default=12, metadata={"help": "Number of query heads."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Key/value heads; all heads if not set."})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "Share the embedding with the LM head."})
    rope_theta: float = field(default=10000.0, metadata={"help": "Base of the rotary frequencies."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights; 0 is none."})

    context_length: int = field(default=1024, metadata={"help": "Tokens of a row, and the model's longest sequence."})
    batch_rows: int = field(default=512, metadata={"help": "Rows of a step over all processes and accumulation."})
    micro_batch_rows: int = field(default=0, metadata={"help": "Rows a process holds at once; 0 takes all of a step."})
    pack_documents: bool = field(
        default=False, metadata={"help": "Whole documents that do not see each other, not windows of the stream."}
    )
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})

    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata={"help": "muon: for the layers' matrices."})
    learning_rate: float = field(default=6e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warmup; 0 is none."})
    schedule: Literal["cosine", "wsd"] = field(default="cosine", metadata={"help": "Fall to 0 after the warmup."})
    decay_fraction: float = field(default=0.2, metadata={"help": "wsd: share of the steps in which it falls."})
    weight_decay: float = field(default=0.1, metadata={"help": "On matrices, none on norms; 0 is none."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW: decay of the mean gradient."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW: decay of the mean squared gradient."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this length."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the order of rows."})

    log_steps: int = field(default=20, metadata={"help": "Steps between lines of metrics.jsonl."})
    eval_steps: int = field(default=200, metadata={"help": "Steps between evaluations on the held-out text."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    keep_checkpoints: int = field(default=2, metadata={"help": "Checkpoints to keep; older ones are removed."})


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimizers; the position in the data follows from `step`."""

    step: int = 0
    tokens: int = 0  # trained on so far
    time_s: float = 0.0  # in training steps, without evaluation and saving
    skipped_steps: int = 0  # whose loss or gradient was not finite


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(PretrainConfig, argv, __doc__)
    accelerator = Accelerator(mixed_precision=mixed_precision())
    with accelerator.main_process_first():
        inputs = {"tokenizer": config.tokenizer} | data_inputs(config.data)
        stage = open_stage("pretrain", config, inputs, config.output_dir)
    if not stage.done:
        metrics = train(config, accelerator, stage.folder)
        if accelerator.is_main_process:
            stage.finish(metrics)


def train(config: PretrainConfig, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to `max_steps`; save the model and return its figures."""
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    rows, held_out = open_data(config.data, config.context_length, config.seed, config.pack_documents)
    trainer = Trainer(config, accelerator, folder, build_model(config, held_out.vocab_size, tokenizer), held_out)
    trainer.resume()
    trainer.loop(rows)
    if accelerator.is_main_process:
        save_model(trainer.unwrapped, tokenizer, folder / "model")
    return trainer.summary()


def build_model(config: PretrainConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> ScratchForCausalLM:
    """Return the model with initial weights from the seed."""
    set_seed(config.seed)
    return ScratchForCausalLM(
        ScratchConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.context_length,
            tie_word_embeddings=config.tie_word_embeddings,
            attention_dropout=config.attention_dropout,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


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
        self.unwrapped = model.to(accelerator.device)
        self.optimizers = build_optimizers(
            self.unwrapped,
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
            (config.adam_beta1, config.adam_beta2),
        )
        self.model = accelerator.prepare(self.unwrapped)
        self.progress = Progress()
        self.interval = Interval()
        self.last: dict[str, float] = {}  # newest value of each metric
        self.bad_steps = 0
        self.stop_signal: int | None = None
        accelerator.print(
            f"{model.num_parameters():,} parameters ({model.num_parameters(exclude_embeddings=True):,} without "
            f"embedding), {accelerator.num_processes} x {accelerator.device.type}, "
            f"{'bfloat16 autocast' if accelerator.mixed_precision == 'bf16' else 'float32'}"
        )

    def loop(self, rows: Rows) -> None:
        """Train to the last step; log, evaluate and save on the way."""
        config, progress = self.config, self.progress
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember_signal)
        with tqdm(total=config.max_steps, initial=progress.step, unit="step", disable=None, dynamic_ncols=True) as bar:
            while progress.step < config.max_steps:
                started = time.perf_counter()
                lr = self.set_learning_rate()
                loss, tokens, grad_norm = self.train_step(rows)
                progress.step += 1
                progress.tokens += tokens
                self.interval.add(loss, tokens, time.perf_counter() - started)
                progress.time_s += time.perf_counter() - started
                bar.update()

                last = progress.step == config.max_steps
                evaluate = last or progress.step % config.eval_steps == 0
                if evaluate or progress.step % config.log_steps == 0:
                    self.log(lr, grad_norm, evaluate)
                    bar.set_postfix_str(
                        f"loss {self.last['train_loss']:.3f} ppl {math.exp(self.last['train_loss']):.1f} "
                        f"{self.last['tokens_per_s']:,.0f} tokens/s"
                    )
                    self.interval = Interval()
                if last or self.stop_signal or progress.step % config.save_steps == 0:
                    self.save()
                if self.stop_signal and not last:
                    sys.exit(f"stopped after step {progress.step}; the same command goes on from there.")

    def set_learning_rate(self) -> float:
        """Set and return the learning rate of the step that comes."""
        config = self.config
        lr = learning_rate(
            self.progress.step,
            config.max_steps,
            config.learning_rate,
            config.warmup_steps,
            config.schedule,
            config.decay_fraction,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def train_step(self, rows: Rows) -> tuple[float, int, float]:
        """Take one optimizer step; return mean loss in nats a token, tokens of the global batch and gradient norm.

        The loss is divided by the tokens of the whole step, not of each micro-batch, so accumulation and processes
        do not change it.
        """
        self.model.zero_grad(set_to_none=True)
        micro_batches = self.micro_batches(rows)
        counted = torch.tensor(sum(int((b["labels"] != IGNORE).sum()) for b in micro_batches))
        total = int(self.accelerator.reduce(counted.to(self.accelerator.device), "sum"))
        loss = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(micro_batches):
            if i == len(micro_batches) - 1:
                loss += self.backward(batch, total)
            else:
                with self.accelerator.no_sync(self.model):
                    loss += self.backward(batch, total)
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        mean_loss = float(self.accelerator.reduce(loss, "mean"))
        if math.isfinite(mean_loss) and math.isfinite(grad_norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.bad_steps = 0
        else:
            self.refuse_step(mean_loss, float(grad_norm))
        return mean_loss, total, float(grad_norm)

    def backward(self, batch: Batch, total: int) -> torch.Tensor:
        """Add a micro-batch's gradient and return its share of the step's mean loss."""
        batch = {key: tensor.to(self.accelerator.device, non_blocking=True) for key, tensor in batch.items()}
        with self.accelerator.autocast():
            # use_cache=False: with a cache, packed documents would not be told apart.
            loss = self.model(**batch, shift_labels=batch["labels"], num_items_in_batch=total, use_cache=False).loss
        # DDP takes the mean over processes where the sum is wanted.
        loss = loss * self.accelerator.num_processes
        self.accelerator.backward(loss)
        return loss.detach()

    def micro_batches(self, rows: Rows) -> list[Batch]:
        """Return this process's share of the step's rows, in pieces that it can hold at once."""
        config = self.config
        first = self.progress.step * config.batch_rows
        mine = np.arange(first, first + config.batch_rows)[
            self.accelerator.process_index :: self.accelerator.num_processes
        ]
        size = config.micro_batch_rows or len(mine)
        return [rows.batch(mine[i : i + size]) for i in range(0, len(mine), size)]

    def refuse_step(self, loss: float, grad_norm: float) -> None:
        """Count a step whose loss or gradient is not finite; it never reaches the weights.

        Raises:
            ValueError: The third in a row.
        """
        self.bad_steps += 1
        self.progress.skipped_steps += 1
        step = self.progress.step
        tqdm.write(f"step {step}: loss {loss}, gradient norm {grad_norm}; the step is skipped")
        if self.bad_steps == 3:
            raise ValueError(
                f"steps {step - 2} to {step} had no finite loss (rows up to {(step + 1) * self.config.batch_rows}); "
                f"lower learning_rate={self.config.learning_rate}. The last checkpoint in "
                f"{self.folder / 'checkpoints'} is good."
            )

    def log(self, lr: float, grad_norm: float, evaluate: bool) -> None:
        """Write a line of metrics.jsonl, with the held-out loss if it is time for it."""
        interval = self.interval
        line: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "time_s": round(self.progress.time_s, 3),
            "train_loss": interval.mean_loss,
            "val_loss": None,
            "val_bpb": None,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_s": interval.tokens / interval.seconds,
        }
        if evaluate:
            held_out = self.evaluate()
            line |= {"val_loss": held_out.nats_per_token, "val_bpb": held_out.bits_per_byte}
            tqdm.write(
                f"step {self.progress.step}: train loss {interval.mean_loss:.4f}, "
                f"held-out loss {held_out.nats_per_token:.4f}, {held_out.bits_per_byte:.4f} bits per byte, "
                f"{self.progress.time_s:.0f} s"
            )
        self.last |= {key: value for key, value in line.items() if value is not None}
        if self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def evaluate(self) -> BitsPerByte:
        """Return loss and bits per byte on all of the held-out text."""
        held_out = self.held_out
        return bits_per_byte(
            self.unwrapped,
            held_out.tokens,
            held_out.starts,
            held_out.num_bytes,
            self.config.context_length,
            self.accelerator.device,
        )

    def save(self) -> None:
        """Write a checkpoint of everything that the run depends on."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "progress": asdict(self.progress),
            "interval": asdict(self.interval),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch_rng": torch.get_rng_state(),
        }
        weights = {name: param.detach() for name, param in self.unwrapped.named_parameters()}
        save_checkpoint(self.folder / "checkpoints", self.progress.step, weights, state, self.config.keep_checkpoints)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one, and drop the metrics that came after it."""
        found = load_latest(self.folder / "checkpoints")
        if found is not None:
            weights, state = found
            self.unwrapped.load_state_dict(weights, strict=False)  # the tied LM head is not in the file
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            torch.set_rng_state(state["torch_rng"])
            self.progress, self.interval = Progress(**state["progress"]), Interval(**state["interval"])
            self.accelerator.print(f"goes on from step {self.progress.step}")
        if self.accelerator.is_main_process:
            cut_metrics(self.folder / METRICS, self.progress.step)

    def summary(self) -> dict[str, Any]:
        """Return the run's figures for its record."""
        sizes = {
            "parameters": self.unwrapped.num_parameters(),
            "non_embedding_parameters": self.unwrapped.num_parameters(exclude_embeddings=True),
        }
        return sizes | asdict(self.progress) | {key: self.last[key] for key in ("train_loss", "val_loss", "val_bpb")}

    def _remember_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal is not None:
            raise KeyboardInterrupt
        self.stop_signal = number


@dataclass
class Interval:
    """Loss and speed since the last line of the log."""

    nats: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        """Count one step with its mean loss."""
        self.nats += loss * tokens
        self.tokens += tokens
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


if __name__ == "__main__":
    main()
