"""How DPO trains: its reference, its first loss, which must be ln 2, and what its log shows besides TRL's figures."""

import copy
import math
from typing import Any

import torch
import trl
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from training.alignment.config import DpoConfig
from training.alignment.kto import make_kto_trainer
from training.alignment.stage import Data, lora_config, run_stage
from training.alignment.trainer import WholeStep, training_arguments

TOLERANCE = 1e-3  # of the first loss around ln 2: summed rounding of some hundred log-probabilities is below 1e-4
FALLEN = 1.0  # nats that the chosen answers lose against the reference before it is worth a warning
KL_PAIRS = 2  # pairs whose answers the KL is measured on: it needs all logits of both models
KL_POSITIONS = 128  # of which at once: at 150,000 tokens 80 MB for each of five tensors
MEASURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected", "kl", "length/chosen", "length/rejected")


class CheckedDPOTrainer(WholeStep, trl.DPOTrainer):
    """TRL's trainer on rows that are tokenized already, with a look at the first loss and more in the log."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a batch.

        Raises:
            ValueError: Before the first step, model and reference do not give the pairs the same log-probabilities.
        """
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        figures = self._metrics["train" if model.training else "eval"]
        if self.state.global_step == 0 and model.training:
            rounding = torch.finfo(torch.bfloat16).eps if self.args.bf16 else 0.0
            check_first_loss({key: values[-1] for key, values in figures.items()}, self.beta, rounding)
        lengths = inputs["completion_mask"].sum(dim=1).float().chunk(2)
        figures["length/chosen"].append(lengths[0].mean().item())
        figures["length/rejected"].append(lengths[1].mean().item())
        step = self.state.global_step + 1
        logged = step == 1 or step % self.args.logging_steps == 0 or step == self.state.max_steps
        if model.training and self.first_micro_batch and logged and not self.precompute_ref_logps:
            figures["kl"].append(self.kl_to_reference(model, inputs))
        return loss

    @torch.no_grad()
    def kl_to_reference(self, model: Any, inputs: dict[str, torch.Tensor]) -> float:
        """Return KL(model || reference) in nats a token, over the whole vocabulary, at tokens of some answers."""
        half = len(inputs["input_ids"]) // 2
        total, count = 0.0, 0
        for row in [side * half + i for side in (0, 1) for i in range(min(KL_PAIRS, half))]:
            batch = {name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask")}
            # The logits of a whole row, let alone of a batch, are gigabytes where the vocabulary is large.
            answer = inputs["completion_mask"][row, 1:].nonzero()[:, 0]
            how = {"use_cache": False, "logits_to_keep": answer}
            logits = model(**batch, **how).logits[0]
            if self.ref_model is not None:
                reference = self.ref_model(**batch, **how).logits[0]
            else:
                with self.accelerator.unwrap_model(self.model).disable_adapter():
                    reference = model(**batch, **how).logits[0]
            total += sum_of_kl(logits, reference).item()
            count += len(answer)
        return total / count


def sum_of_kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the sum over positions of KL(softmax(logits) || softmax(reference)), of (positions, vocabulary) each."""
    total = torch.zeros((), device=logits.device)
    for one, other in zip(logits.split(KL_POSITIONS), reference.split(KL_POSITIONS), strict=True):
        logps = one.float().log_softmax(-1)
        total += (logps.exp() * (logps - other.float().log_softmax(-1))).sum()
    return total


def check_first_loss(figures: dict[str, float], beta: float, rounding: float = 0.0) -> None:
    """Raise ValueError if a wrong reference moves the sigmoid loss of the first batch off ln 2.

    Args:
        rounding: Of the log-probabilities, as a share of them: in bfloat16 those of a row depend on how it is padded,
            so that written down before the first step they are not quite those of the step.
    """
    for side in ("chosen", "rejected"):
        reward = figures[f"rewards/{side}"]
        beyond = max(0.0, abs(reward) - beta * rounding * abs(figures[f"logps/{side}"]))
        first_loss = math.log1p(math.exp(-beyond))
        if not abs(first_loss - math.log(2)) <= TOLERANCE or math.isnan(reward):
            raise ValueError(
                f"the first DPO loss must be ln 2 = {math.log(2):.4f}, since model and reference are the same before "
                f"the first step, but the mean reward of the {side} answers is {reward:.4f} and not 0; the "
                "reference is another model, or the model is not deterministic."
            )


class ChosenFalls(TrainerCallback):
    """Warns once when the chosen answers become unlikely together with the rejected ones."""

    def __init__(self, beta: float) -> None:
        self.beta, self.warned = beta, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the rewards, which are beta times the log-ratio to the reference."""
        if self.warned or not state.is_world_process_zero or "rewards/chosen" not in logs:
            return
        chosen, rejected = (logs[f"rewards/{side}"] / self.beta for side in ("chosen", "rejected"))
        if chosen < -FALLEN and rejected < -FALLEN:
            self.warned = True
            tqdm.write(
                f"warning, step {state.global_step}: the chosen answers became less likely with the rejected ones, by "
                f"{-chosen:.1f} and {-rejected:.1f} nats an answer. The margin grows while the model forgets what to "
                "say; `--loss_type sigmoid sft` holds the chosen answers up, a lower learning_rate or a higher beta "
                "slows it."
            )


def run(config: DpoConfig) -> None:
    """Run the stage."""
    advice = "Next: `python -m training.eval_model`, or talk to it."
    run_stage("dpo", config, ["preferences", "thumbs"], make_trainer, advice)


def make_trainer(
    config: DpoConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[trl.DPOTrainer | trl.KTOTrainer, list[str]]:
    """Return the trainer, KTO's for thumbs, and what it logs."""
    common = {
        "model": model,
        "ref_model": reference_model(config, model),
        "train_dataset": data.train.dataset,
        "eval_dataset": data.held_out.dataset if data.held_out else None,
        "processing_class": tokenizer,
        "peft_config": lora_config(config),
    }
    if data.train.kind == "thumbs":
        if config.reference == "precomputed" or config.loss_type != ["sigmoid"] or config.loss_weights:
            raise ValueError(
                "this data has thumbs and no pairs, so it is trained on with KTO, which has one loss and a reference "
                "that is a copy or the model with its adapters off; leave loss_type, loss_weights and reference out."
            )
        return make_kto_trainer(config, config.beta, common)
    arguments = training_arguments(config)
    trainer = CheckedDPOTrainer(
        **common,
        args=trl.DPOConfig(
            **arguments,
            beta=config.beta,
            loss_type=config.loss_type,
            loss_weights=config.loss_weights or None,
            precompute_ref_log_probs=config.reference == "precomputed",
            precompute_ref_batch_size=arguments["per_device_eval_batch_size"],
        ),
        callbacks=[ChosenFalls(config.beta)],
    )
    return trainer, [*MEASURES, *LOGPS, *(f"eval_{name}" for name in MEASURES)]


def reference_model(config: DpoConfig, model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a copy of the model, None where it need not be kept; TRL would load it from where the model came from."""
    if config.reference == "copy" or (config.reference == "auto" and config.tune == "full"):
        return copy.deepcopy(model)
    return None
