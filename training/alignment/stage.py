"""What SFT and DPO share: the data and its check, the model to train, saving, and the order of these.

`run_stage` is a stage from its first line to its last; a stage adds its trainer. How the training goes is in
`training.alignment.trainer`.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, PeftModel
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_scratch.chat_tokens import answer_end_token
from hf_scratch.load import load_from
from hf_scratch.tokenizer import CHAT_TEMPLATE, IM_END, IM_START, require_fit
from training.alignment.config import AlignConfig, GrpoConfig
from training.alignment.trainer import CHECKPOINTS, train
from training.chat.check import Finding, check_data, refuse_errors, table
from training.chat.formats import Kind
from training.chat.rows import load_rows
from training.chat.tokenize import Tokenized, row_lengths, show, tokenize
from training.engine.device import DTYPES, join_processes, on_main, say, settle_precision, settle_tf32
from training.engine.save import end_tokens, save_model, save_tokenizer
from training.engine.sharded import whole
from training.engine.tracker import require_tracker
from training.stage.files import atomic_folder, write_json
from training.stage.record import Stage, open_stage


@dataclass(frozen=True)
class Data:
    """The rows of a stage as token ids, and what the data check found in them."""

    train: Tokenized
    held_out: Tokenized | None
    findings: list[Finding]


MakeTrainer = Callable[[Any, PreTrainedModel, PreTrainedTokenizerBase, Data], tuple[Trainer, list[str]]]


def run_stage(name: str, config: Any, kinds: Sequence[Kind], make_trainer: MakeTrainer, advice: str) -> None:
    """Run a stage: open its folder, read and check the data, train, save.

    Args:
        kinds: What the data may be; its columns decide.
        make_trainer: Returns the trainer and what it logs that metrics.jsonl shall have.
        advice: What the user can do next.

    Raises:
        ValueError: The model, the data or the settings cannot be used.
    """
    quiet()
    join_processes()
    config.max_length = config.max_length or context_of(config.model)
    if config.inspect:
        tokenizer = load_tokenizer(config.model)
        data = read_data(tokenizer, config, kinds)
        say(data.train.summary())
        say(show(tokenizer, data.train, whole=True))
        return
    stage = open_align_stage(name, config, config.inputs())
    if stage.done:
        return
    # What is trained is float32. What lies under adapters stays as it is, and is rounded as products would round it.
    dtype = torch.float32 if config.tune == "full" else DTYPES[config.precision]
    model, tokenizer = load_model(config.model, config.max_length, quantized=config.tune == "qlora", dtype=dtype)
    data = read_data(tokenizer, config, kinds)
    if PartialState().is_main_process:
        stage.record["data"] = [asdict(finding) for finding in data.findings]
        write_json(stage.folder / "stage.json", stage.record)
    refuse_errors(data.findings)
    say(data.train.summary())
    say(show(tokenizer, data.train))
    trainer, measures = make_trainer(config, model, tokenizer, data)
    metrics = train(trainer, row_lengths(trainer.train_dataset), config, stage, measures)
    save(trainer, config, stage)
    finish(stage, data.train.counts | metrics | {"precision": config.precision}, advice)


def quiet() -> None:
    """Keep what libraries print to what a user needs."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # TRL asks transformers by the old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def open_align_stage(
    name: str, config: AlignConfig | GrpoConfig, inputs: Mapping[str, str | Sequence[str] | None]
) -> Stage:
    """Open the stage's folder and settle the precision."""
    if not config.output_dir:
        raise ValueError(f"--output_dir is missing: say where the stage shall write, for example runs/mine/{name}.")
    output_dir = config.output_dir

    def open_settled() -> Stage:
        stage = open_stage(name, config, inputs, output_dir)
        if not stage.done:
            require_tracker(config.tracker)
            settle_precision(stage, config.precision)
        return stage

    stage = on_main(open_settled)
    config.precision = stage.record.get("precision", config.precision)
    settle_tf32(config.precision == "bf16")
    return stage


def read_data(tokenizer: PreTrainedTokenizerBase, config: AlignConfig, kinds: Sequence[Kind]) -> Data:
    """Read, tokenize and check the rows, and print what was found."""
    loaded = load_rows(kinds, config.data, config.num_examples, config.eval_examples, config.seed)
    found = tokenize(tokenizer, loaded.kind, loaded.train, config.max_length)
    held_out = None
    if loaded.held_out:
        try:
            held_out = tokenize(tokenizer, loaded.kind, loaded.held_out, config.max_length)
        except ValueError as error:
            raise ValueError(f"the held-out rows cannot be evaluated on: {error}") from None
    findings = check_data(tokenizer, found, loaded, config.max_length)
    say(table(findings))
    return Data(found, held_out, findings)


# ---- the model ----


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a chat template and ends a turn as the template does.

    Raises:
        ValueError: There is none, or it has no chat template and not the tokens of ours.
    """
    tokenizer = load_from(AutoTokenizer, path, "model")
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None:
        if not {IM_START, IM_END} <= vocabulary.keys():
            raise ValueError(
                f"{path} has no chat template, and not the tokens {IM_START} and {IM_END} of ours; "
                "save a tokenizer with a chat_template beside the model, or start from its chat version."
            )
        tokenizer.chat_template = CHAT_TEMPLATE
    if end := answer_end_token(tokenizer):
        tokenizer.eos_token = end
    if tokenizer.pad_token is None:
        say(f"the tokenizer has no padding token; {tokenizer.eos_token} pads, where no loss is counted")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str, max_length: int = 0, *, quantized: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model in `dtype`, or in 4 bits with products in it, and its tokenizer.

    Raises:
        ValueError: There is no such model, its tokenizer has more tokens than it, `max_length` is longer than its
            context, or no bitsandbytes for 4 bits.
    """
    tokenizer = load_tokenizer(path)
    model = load_weights(path, quantized=quantized, dtype=dtype)
    require_fit(tokenizer, model)
    # The Trainer would do this as well, and warn of it. The model keeps the other tokens at which it stops.
    model.generation_config.eos_token_id = end_tokens(model, tokenizer)
    for config in (model.config, model.generation_config):
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            token = getattr(tokenizer, name)
            if token is not None and not isinstance(getattr(config, name, None), list):
                setattr(config, name, token)
    # A stock model never learns the row of its padding token, which may end turns too; padding itself has no gradient.
    model.get_input_embeddings().padding_idx = None
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ValueError(f"max_length={max_length} is longer than the context of {path}; use at most {context}.")
    return model, tokenizer


def context_of(path: str) -> int:
    """Return how many tokens a model takes.

    Raises:
        ValueError: There is no such model, or it does not say.
    """
    config = load_from(AutoConfig, path, "model").get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        raise ValueError(f"{path} does not say how many tokens it takes; set max_length, for example 1024.")
    return context


def load_weights(path: str, *, quantized: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model in `dtype`, or in 4-bit NormalFloat with products in it (arXiv:2305.14314)."""
    how: dict[str, Any] = {"dtype": torch.float32 if quantized else dtype}
    if quantized:
        bits = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        how |= {"quantization_config": bits, "device_map": {"": PartialState().device}}
    try:
        return load_from(AutoModelForCausalLM, path, "model", **how)
    except ImportError as error:
        raise ValueError(f"--tune qlora needs bitsandbytes; pip install 'hf_scratch[qlora]' ({error}).") from None


def lora_config(config: AlignConfig) -> LoraConfig | None:
    """Return adapters of rank `lora_r` on every linear layer but the LM head, None for full training.

    Scaled by alpha / r = 2, the ratio that is usual for small ranks.
    """
    if config.tune == "full":
        return None
    # Our model type is not in PEFT's table of layers to adapt, so they are named by their kind.
    return LoraConfig(
        r=config.lora_r, lora_alpha=2 * config.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
    )


# ---- the end ----


def save(trainer: Trainer, config: AlignConfig, stage: Stage) -> None:
    """Write the stage's `model`; where adapters were trained also `adapter`, which holds them and the tokenizer.

    All processes must call this, since each may hold a part of the weights; the main one writes.
    """
    weights = gather_weights(trainer)
    if not trainer.accelerator.is_main_process:
        return
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    if isinstance(model, PeftModel):
        name_base(model)
        with atomic_folder(stage.folder / "adapter") as beside:
            model.save_pretrained(beside, state_dict=weights)
            save_tokenizer(tokenizer, model, beside)
        # Merged into 4 or 16 bits the adapters would be rounded away, and of shards this process has only its own.
        if config.tune == "qlora" or config.precision == "bf16" or weights is not None:
            model = PeftModel.from_pretrained(load_model(config.model)[0], stage.folder / "adapter")
            weights = None
        model = model.merge_and_unload()
    if config.answer_temperature:
        model.generation_config.update(do_sample=True, temperature=config.answer_temperature, top_k=50)
    save_model(model, tokenizer, stage.folder / "model", weights)


def gather_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """Return the weights of a model in shards, on the main process; None where each process holds all of them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parts = model.state_dict(keep_vars=True)  # what is tied is then one object, and gathered once
    if not any(isinstance(part, DTensor) for part in parts.values()):
        return None
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for part in parts.values():
            if id(part) not in found:
                full = whole(part)
                found[id(part)] = full.cpu() if trainer.accelerator.is_main_process else torch.empty(0)
    return {name: found[id(part)] for name, part in parts.items()}


def name_base(model: PeftModel) -> None:
    """Let adapters name the folder of their base so that it is found from anywhere."""
    for adapter in model.peft_config.values():
        base = adapter.base_model_name_or_path
        if base and Path(base).is_dir():
            adapter.base_model_name_or_path = str(Path(base).resolve())


def finish(stage: Stage, metrics: dict[str, Any], advice: str) -> None:
    """Write the record, remove the checkpoints, which nobody needs any more, and say what is next."""
    if not PartialState().is_main_process:
        return
    stage.finish(metrics)
    shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    print(f"The model is in {stage.folder / 'model'}. {advice}")
