"""One optimizer step of pretraining: rows in micro-batches that fit into memory, their gradient, the update.

A step is defined by its global batch. How many rows are held at once is a detail, halved when memory runs out.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from hf_scratch import ScratchForCausalLM
from training.engine.batches import IGNORE, Batch, ReadAhead, Rows, fill_rows
from training.engine.checkpoint import Progress
from training.engine.config import PretrainConfig
from training.engine.cost import flops_per_token
from training.engine.device import DTYPES, settle_compile
from training.engine.loss import NumItems, PretrainingLoss
from training.engine.micro_batch import until_it_fits
from training.engine.optimizer import build_optimizers
from training.engine.parallel import Parallel
from training.stage.files import read_json, write_json
from training.stage.record import MEMORY

T = TypeVar("T")


class TrainStep:
    """What a step needs: model, optimizers, processes and how far the run is."""

    def __init__(
        self, config: PretrainConfig, accelerator: Accelerator, folder: Path, model: ScratchForCausalLM
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.unwrapped, self.parallel = model, Parallel(accelerator)
        if config.batch_rows % self.parallel.data_count:
            raise ValueError(
                f"batch_rows={config.batch_rows} cannot be shared out evenly over {self.parallel.data_count} parts of "
                "a step, one for each copy or shard of the model; take a multiple, or fewer processes."
            )
        operations = flops_per_token(model.config, config.row_tokens) * config.step_tokens * config.max_steps
        self.compiled, self.how_compiled = settle_compile(config.compile, operations, accelerator.device)
        if config.attn_implementation != "sdpa":
            model.set_attn_implementation(config.attn_implementation)
        loss = PretrainingLoss(model, self.compiled)
        self.model = self.parallel.wrap(loss, self.compiled, config.activation_checkpointing)
        self.precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
        dtype, betas = DTYPES[self.precision], (config.adam_beta1, config.adam_beta2)
        rates = (config.learning_rate, config.weight_decay, betas)
        self.optimizers = build_optimizers(model, config.optimizer, *rates, dtype, self.parallel.copies)
        self.read_ahead = ReadAhead() if accelerator.device.type == "cuda" else None
        self.progress = Progress(micro_batch_size=config.micro_batch_size)
        self.bad_steps = 0

    def train_step(self, rows: Rows) -> tuple[float, int, float]:
        """Take one optimizer step; return mean loss in nats a token, tokens learnt from and gradient norm.

        A step whose loss or gradient is not finite is skipped: it learns from no tokens.

        Raises:
            ValueError: Not even one row fits into memory, or the loss was not finite three times in a row.
        """
        others_wait = self.accelerator.num_processes > 1
        loss, total = self.halve_until_it_fits(lambda: self.gradients(rows), others_wait)
        norm = self.parallel.clip_grad_norm(self.model, self.config.max_grad_norm)
        # Both in one look: at each a GPU has to finish what it was given, and gets nothing new meanwhile.
        mean_loss, grad_norm = torch.stack([self.accelerator.reduce(loss, "mean"), norm]).tolist()
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
        loss = torch.zeros((), device=self.accelerator.device)
        counted = torch.tensor(sum(int((b["labels"] != IGNORE).sum()) for b in micro_batches))
        total = int(self.parallel.sum(counted))
        num_items = self.num_items(total)
        for i, batch in enumerate(micro_batches):
            if i == len(micro_batches) - 1:
                loss += self.backward(batch, num_items)
            else:
                with self.parallel.no_sync(self.model):
                    loss += self.backward(batch, num_items)
        return loss, total

    def num_items(self, tokens: int) -> NumItems:
        """Return a number of tokens as the loss takes it: as a tensor where it would be compiled anew for each."""
        return torch.tensor(tokens).to(self.accelerator.device) if self.compiled else tokens

    def backward(self, batch: Batch, num_items: NumItems) -> torch.Tensor:
        """Add a micro-batch's gradient and return its share of the step's mean loss."""
        batch = fill_rows(batch, self.config.row_tokens) if self.compiled else batch
        batch = {key: tensor.to(self.accelerator.device, non_blocking=True) for key, tensor in batch.items()}
        with self.accelerator.autocast():
            loss = self.model(**batch, num_items=num_items)
        # DDP and FSDP2 take the mean over processes where the sum is wanted.
        loss = loss * self.parallel.data_count
        self.accelerator.backward(loss)
        return loss.detach()

    def micro_batches(self, rows: Rows) -> list[Batch]:
        """Return this process's share of the step's rows, as many in a batch as it can hold at once."""
        numbers = self.my_rows()
        size = self.progress.micro_batch_size or len(numbers)
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        if self.read_ahead is None:
            return [rows.batch(batch) for batch in batches]
        return self.read_ahead(rows, batches, [batch + self.config.batch_rows for batch in batches])

    def my_rows(self) -> np.ndarray:
        """Return the numbers of this process's rows of the step that comes."""
        first = self.progress.step * self.config.batch_rows
        return np.arange(first, first + self.config.batch_rows)[self.parallel.data_index :: self.parallel.data_count]

    def find_micro_batch(self) -> None:
        """Settle how many rows a process holds at once: what settings, checkpoint or an earlier shortage of memory
        say, else as many as fit when it is tried. The smallest number of any process holds for all.
        """
        noted = Progress.read(read_json(self.folder / MEMORY)).micro_batch_size
        limits = [rows for rows in (self.config.micro_batch_size, self.progress.micro_batch_size, noted) if rows]
        if limits:
            self.progress.micro_batch_size = min(limits)
        else:
            self.try_micro_batches()
        fits = torch.tensor([self.progress.micro_batch_size], device=self.accelerator.device)
        self.progress.micro_batch_size = int(self.accelerator.gather(fits).min())

    def try_micro_batches(self) -> None:
        """Find the most rows that fit into this process's memory.

        Raises:
            ValueError: The model is sharded.
        """
        if self.parallel.mesh is not None:
            raise ValueError(
                "micro_batch_size is not set, and what fits cannot be tried while a model is sharded; "
                "`python -m training.plan` says what will fit."
            )
        self.progress.micro_batch_size = len(self.my_rows())
        length, device = self.config.row_tokens, self.accelerator.device
        # As the batches of the run are, whose compiled layers are then these: contiguous, and packed where they are.
        documents = torch.arange(length, device=device) % max(1, length // 2)
        # The room that the optimizers' two averages will take after the first step.
        reserved = [torch.empty_like(param) for param in self.unwrapped.parameters() for _ in range(2)]

        probe = PretrainingLoss(self.unwrapped, self.compiled)

        def try_rows() -> None:
            shape = (self.progress.micro_batch_size, length)
            tokens = torch.zeros(shape, dtype=torch.long, device=device)
            batch = {"input_ids": tokens, "labels": tokens}
            if self.config.pack_documents:
                batch["position_ids"] = documents.expand(shape).contiguous()
            with self.accelerator.autocast():
                loss = probe(**batch, num_items=self.num_items(tokens.numel()))
            loss.backward()

        self.halve_until_it_fits(try_rows)
        del reserved
        self.unwrapped.zero_grad(set_to_none=True)

    def halve_until_it_fits(self, work: Callable[[], T], others_wait: bool = False) -> T:
        """Do the work; where memory runs out, halve the micro-batch and do it again.

        Other processes may wait in the middle of the work and cannot do it again. Then the half is noted for the next
        start, which goes on from the last checkpoint.

        Raises:
            ValueError: Not even one row fits, or others wait.
        """

        def halve() -> None:
            size = self.progress.micro_batch_size or len(self.my_rows())
            if size == 1:
                raise ValueError(
                    f"memory runs out at step {self.progress.step} with one row of {self.config.row_tokens} "
                    "tokens at once; take a smaller model or row_length."
                )
            if others_wait:
                write_json(self.folder / MEMORY, {"micro_batch_size": size // 2})
                raise ValueError(
                    f"memory ran out on process {self.accelerator.process_index} at step {self.progress.step} with "
                    f"{size} rows at once; the same command goes on from the last checkpoint with {size // 2}."
                )
            self.progress.micro_batch_size = size // 2
            self.model.zero_grad(set_to_none=True)
            tqdm.write(f"memory ran out with {size} rows at once; going on with {size // 2} of the same batch")

        return until_it_fits(work, halve)

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

    def say(self, line: str) -> None:
        """Print a line above the progress bar, once."""
        if self.accelerator.is_main_process:
            tqdm.write(line)
