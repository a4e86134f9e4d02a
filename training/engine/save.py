"""Writing a model so that it loads anywhere: weights, config, code, tokenizer and how to generate with it."""

import copy
from dataclasses import fields
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from hf_scratch.chat_tokens import answer_end_token
from training.stage.files import atomic_folder

# Settings that are of use where tokens are drawn; beside `do_sample=False` transformers refuses to save them.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `from_pretrained` takes, in one piece.

    How the model generates stays as it was, and it also stops where an answer ends; without a word about sampling it
    is greedy. `use_cache`, which trainers switch off, is on again. `weights` are given where the model is sharded.

    Raises:
        OSError: It could not be written; what stood there before is untouched.
    """
    with atomic_folder(path) as folder:
        _write(model, tokenizer, folder, weights)


def write_files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what a model's folder has besides its weights: config, code, tokenizer and how to generate."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # of no weights, beneath a run's own
    _write(model, tokenizer, folder, weights={})
    if shown:
        enable_progress_bar()


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, torch.Tensor] | None
) -> None:
    model.config.use_cache = True
    model.generation_config = generation_settings(model, tokenizer)
    # Old files hold such settings in config.json, where transformers refuses to save them; it has read them by now.
    own = {field.name for field in fields(model.config)} | {"use_cache"}
    for name in vars(model.generation_config).keys() & vars(model.config).keys() - own:
        delattr(model.config, name)
    model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
    save_tokenizer(tokenizer, model, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path) -> None:
    """Write a model's tokenizer, which says how many tokens the model reads unless it has a number of its own."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and tokenizer.model_max_length > 10**9:  # 1e30 stands for none
        tokenizer.model_max_length = context
    tokenizer.save_pretrained(folder)


def generation_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return how the model generates, with the tokens of this tokenizer, as transformers will save it."""
    settings = copy.deepcopy(model.generation_config)
    settings.eos_token_id = end_tokens(model, tokenizer) or None
    for name in ("bos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            setattr(settings, name, token)
    if settings.do_sample is None:
        # Temperature and the like without `do_sample` are in many a repository of the Hub, and meant to be used.
        settings.do_sample = not is_valid(settings)
    elif not settings.do_sample and not is_valid(settings):
        for name in SAMPLING:
            setattr(settings, name, None)
    if not is_valid(settings):
        # Nothing may stand between hours of training and the disk.
        print("the model's generation settings contradict each other; only its special tokens are kept of them")
        tokens = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings = GenerationConfig(**tokens, do_sample=False)
    return settings


def is_valid(settings: GenerationConfig) -> bool:
    """Whether transformers would save these settings."""
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return all tokens at which the model stops: the tokenizer's own first, the template's, and those it had."""
    ends = [tokenizer.eos_token_id, end_of_answer(tokenizer)]
    for had in (model.generation_config.eos_token_id, getattr(model.config, "eos_token_id", None)):
        ends += had if isinstance(had, list) else [had]
    return [token for token in dict.fromkeys(ends) if token is not None]


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token that the chat template writes behind an answer, None if it writes none."""
    token = answer_end_token(tokenizer)
    return None if token is None else tokenizer.convert_tokens_to_ids(token)
