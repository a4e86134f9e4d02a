"""Writing a model so that it loads anywhere: weights, config, code, tokenizer and how to generate with it."""

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.hub import CheckpointPusher
from hf_scratch.tokenizer import IM_END
from training.stage import atomic_folder


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `from_pretrained` takes, in one piece.

    The generation config stops at the end of a turn and at the end of a document and is greedy unless asked
    otherwise; `use_cache`, which trainers switch off, is on again. `weights` are given where the model is sharded.

    Raises:
        OSError: It could not be written; what stood there before is untouched.
    """
    ends = [tokenizer.eos_token_id]
    for token in (tokenizer.convert_tokens_to_ids(IM_END), tokenizer.bos_token_id):
        if token is not None and token != tokenizer.unk_token_id and token not in ends:
            ends.append(token)
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    with atomic_folder(path) as folder:
        model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
        tokenizer.save_pretrained(folder)


def make_pusher(
    repo_id: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: Path
) -> CheckpointPusher:
    """Return what pushes checkpoints, with all that a repository needs beside the weights in the folder `files`."""
    save_model(model, tokenizer, files)
    for path in files.glob("*.safetensors*"):
        path.unlink()
    return CheckpointPusher(repo_id, files)
