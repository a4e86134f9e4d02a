"""Training on from a model that exists, ours or a stock Qwen3: its weights, and what it keeps and gains.

Text of its old kind among the new (`--data new old=0.2`) keeps what it has learnt, so the held-out text of each folder
is measured by itself, before the first step and after the last.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.bits_per_byte import BitsPerByte
from hf_scratch.load import load_from, load_tokenizer
from hf_scratch.token_ids import hash_tokenizer
from hf_scratch.tokenizer import require_fit
from training.engine.config import PretrainConfig
from training.stage.files import read_json, write_json

BEFORE = "held_out_before.json"
# Settings that make a new model. The one that is given has its own.
OF_A_NEW_MODEL = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings", "rope_theta", "attention_dropout", "copy_strength",
)  # fmt: skip


def load_initial(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> ScratchForCausalLM:
    """Return the model of `init_from` in float32.

    Raises:
        ValueError: There is no such model, it is of another kind, its tokenizer is another, or a setting contradicts
            it.
    """
    path = str(config.init_from)
    initial_config(config)  # what does not fit is told before the weights are read
    if hash_tokenizer(load_tokenizer(path)) != hash_tokenizer(tokenizer):
        raise ValueError(
            f"the tokenizer {config.tokenizer} is not that of init_from={path}, to which its ids would be other text; "
            f"prepare the data with --tokenizer {path}, and give the same here."
        )
    model = load_from(AutoModelForCausalLM, path, "model", dtype="float32")
    if model.config.model_type == "qwen3":
        from hf_scratch.export.transformers import as_scratch

        model = as_scratch(model)
    require_fit(tokenizer, model)
    started: ScratchForCausalLM = model
    return started.train()


def initial_config(config: PretrainConfig) -> ScratchConfig:
    """Return the sizes of the model of `init_from`, without its weights.

    Raises:
        ValueError: There is no such model, it is of another kind, or a setting contradicts it.
    """
    path = str(config.init_from)
    refuse_settings(config)
    found = load_from(AutoConfig, path, "model")
    if found.model_type == "qwen3":
        from hf_scratch.export.transformers import as_scratch_config

        found = as_scratch_config(found)
    if found.model_type != "scratch":
        raise ValueError(f"init_from={path} is of type {found.model_type!r}; only scratch and dense qwen3 fit.")
    longest = found.max_position_embeddings
    if config.row_tokens > longest:
        raise ValueError(
            f"rows of {config.row_tokens} tokens are longer than the {longest} that init_from={path} reads; set "
            f"row_length={longest} or less."
        )
    sizes: ScratchConfig = found
    return sizes


def refuse_settings(config: PretrainConfig) -> None:
    """Raise ValueError where a setting of a new model is given besides a model that has its own."""
    defaults = {field.name: field.default for field in fields(PretrainConfig)}
    given = [name for name in OF_A_NEW_MODEL if getattr(config, name) != defaults[name]]
    if given:
        raise ValueError(f"{given[0]} is set, but init_from={config.init_from} has its own; leave {given[0]} out.")


def write_before(folder: Path, found: dict[str, BitsPerByte]) -> None:
    """Write down the bits per byte of each folder's held-out text before the first step."""
    write_json(folder / BEFORE, {name: one.bits_per_byte for name, one in found.items()})


def compare_with_before(folder: Path, after: dict[str, BitsPerByte]) -> dict[str, Any]:
    """Return loss and bits per byte of each folder's held-out text, and the bits per byte that were written down."""
    before = read_json(folder / BEFORE)
    return {
        name: {"val_loss": one.nats_per_token, "val_bpb": one.bits_per_byte, "val_bpb_before": before.get(name)}
        for name, one in after.items()
    }
