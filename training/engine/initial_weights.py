"""The model that the settings make, with initial weights under which attention copies what it sees.

A model of stories must carry facts on: the name, the thing, the place. It learns to by attention heads that find where
a fact stood and copy it. From small random weights such a head has nothing to begin with: what it looks at and what it
writes must both be right before either is of use, so copying appears suddenly, at a step that is a matter of chance,
and in some runs too late for one kind of fact.

So value and output projection of each layer begin as each other's inverse, up to a small factor: what a position sees
is added to it as it stands, spread evenly over all that it sees, and the tied LM head reads it as a weak vote for the
words so far. The queries have something to improve at the first step, and the luck is gone. It is in the spirit of
mimetic initialization (arXiv:2305.09828), which takes the form from what trained models look like. The architecture
does not change: a checkpoint is still a stock one.
"""

from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.engine.config import PretrainConfig
from training.engine.init_from import load_initial


def build_model(config: PretrainConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> ScratchForCausalLM:
    """Return the model with initial weights from the seed, or that of `init_from`."""
    set_seed(config.seed)
    if config.init_from:
        return load_initial(config, tokenizer)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = ScratchForCausalLM(model_config(config, vocab_size, **special))
    let_attention_copy(model, config.copy_strength)
    return model


def model_config(config: PretrainConfig, vocab_size: int, **special_tokens: int | None) -> ScratchConfig:
    """Return the sizes of the model that the settings ask for."""
    return ScratchConfig(
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
        **special_tokens,
    )


@torch.no_grad()
def let_attention_copy(model: ScratchForCausalLM, strength: float) -> None:
    """Set `v_proj` and `o_proj` of every layer so that together they are `strength` times the identity.

    `v_proj` (K D, C) is sqrt(strength) Q with Q random and orthogonal; each query head's part of `o_proj` (C, H D) is
    the transpose of its key/value head's part, divided by the heads that share it. With K D < C it is the projection
    onto K D random directions in place of the identity.

    Args:
        model: Its random state is torch's, which a seed has set.
        strength: Of what is copied, beside the embedding itself; 0 leaves the weights as they are.
    """
    if not strength:
        return
    config: Any = model.config
    shape = (config.num_key_value_heads, config.head_dim, config.hidden_size)
    layers: Any = model.model.layers
    for layer in layers:
        attention = layer.self_attn
        values = nn.init.orthogonal_(torch.empty(shape).flatten(0, 1)) * strength**0.5
        shared = attention.num_key_value_groups
        outputs = values.view(shape).repeat_interleave(shared, dim=0).flatten(0, 1) / shared
        attention.v_proj.weight.copy_(values)
        attention.o_proj.weight.copy_(outputs.T)
