"""What SFT and DPO share: the data and its check, the model to train, saving, and the order of these.

`run_stage` is a stage from its first line to its last; a stage adds its trainer. How the training goes is in
`training.align_trainer`.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from hf_scratch import ScratchForCausalLM  # noqa: F401, registers the model type with the Auto classes
from hf_scratch.tokenizer import CHAT_TEMPLATE, IM_END, IM_START
from training.align_trainer import CHECKPOINTS, AlignConfig, say, train
from training.data.chat import load_rows
from training.data.chat_formats import Kind
from training.data.check import Finding, check_data, refuse_errors, table
from training.data.tokenized import Tokenized, row_lengths, show, tokenize
from training.hardware import has_native_bf16, join_processes
from training.save import end_of_answer, end_tokens, save_model, save_tokenizer
from training.stage import Stage, atomic_folder, open_stage, write_json


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
    if config.inspect:
        tokenizer = load_tokenizer(config.model)
        data = read_data(tokenizer, config, kinds)
        say(data.train.summary())
        say(show(tokenizer, data.train, whole=True))
        return
    stage = open_align_stage(name, config)
    if stage.done:
        return
    model, tokenizer = load_model(config.model, config.max_length, quantized=config.tune == "qlora")
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
    finish(stage, data.train.counts | metrics, advice)


def quiet() -> None:
    """Keep what libraries print to what a user needs."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # TRL asks transformers by the old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def open_align_stage(name: str, config: AlignConfig) -> Stage:
    """Open the stage's folder, one process after the other."""
    if not config.output_dir:
        raise ValueError(f"--output_dir is missing: say where the stage shall write, for example runs/mine/{name}.")
    with PartialState().main_process_first():
        return open_stage(name, config, config.inputs(), config.output_dir)


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
    findings = check_data(tokenizer, found, loaded.train, loaded.held_out, config.max_length, loaded.format)
    say(table(findings))
    return Data(found, held_out, findings)


# ---- the model ----


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a chat template and ends a turn as the template does.

    Raises:
        ValueError: There is none, or it has no chat template and not the tokens of ours.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a model's folder, nor a Hub id that can be read ({reason})") from None
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None:
        if not {IM_START, IM_END} <= vocabulary.keys():
            raise ValueError(
                f"{path} has no chat template, and not the tokens {IM_START} and {IM_END} of ours; "
                "save a tokenizer with a chat_template beside the model, or start from its chat version."
            )
        tokenizer.chat_template = CHAT_TEMPLATE
    if (end := end_of_answer(tokenizer)) is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token is None:
        say(f"the tokenizer has no padding token; {tokenizer.eos_token} pads, where no loss is counted")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str, max_length: int = 0, *, quantized: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model in float32, or in 4 bits, and its tokenizer.

    Raises:
        ValueError: There is no such model, `max_length` is longer than its context, or no bitsandbytes for 4 bits.
    """
    tokenizer = load_tokenizer(path)
    model = load_weights(path, quantized=quantized)
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


def load_weights(path: str, *, quantized: bool = False) -> PreTrainedModel:
    """Load a causal language model in float32, or in 4-bit NormalFloat (arXiv:2305.14314)."""
    how: dict[str, Any] = {"dtype": torch.float32}
    if quantized:
        bits = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if has_native_bf16() else torch.float32,
        )
        how |= {"quantization_config": bits, "device_map": {"": PartialState().device}}
    try:
        return AutoModelForCausalLM.from_pretrained(path, **how)
    except ImportError as error:
        raise ValueError(f"--tune qlora needs bitsandbytes; pip install 'hf_scratch[qlora]' ({error}).") from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a model's folder, nor a Hub id that can be read ({reason})") from None


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
    """Write the stage's `model`, and of adapters also `adapter`: them alone, with the tokenizer."""
    if not trainer.accelerator.is_main_process:
        return
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    if isinstance(model, PeftModel):
        with atomic_folder(stage.folder / "adapter") as beside:
            model.save_pretrained(beside)
            save_tokenizer(tokenizer, model, beside)
        if config.tune == "qlora":  # merged into 4 bits, the adapters would be rounded away
            model = PeftModel.from_pretrained(load_weights(config.model), stage.folder / "adapter")
        model = model.merge_and_unload()
    save_model(model, tokenizer, stage.folder / "model")


def finish(stage: Stage, metrics: dict[str, Any], advice: str) -> None:
    """Write the record, remove the checkpoints, which nobody needs any more, and say what is next."""
    if not PartialState().is_main_process:
        return
    stage.finish(metrics)
    shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    print(f"The model is in {stage.folder / 'model'}. {advice}")
