"""Configuration of the Scratch decoder, one dataclass that holds every size of the model.

Field names are the ones that caches, vLLM, lm-evaluation-harness and llama.cpp's converter read, and their
meaning is Qwen3's. A value that cannot work is refused here, before a weight is made.
"""

import difflib
import functools
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.utils import logging

# Not fields of the dataclass, but handled by the base class or written into config.json by the Hub stack.
_KEYS_OF_THE_STACK = frozenset(
    "attn_implementation auto_map experts_implementation model_type name_or_path num_labels output_attentions "
    "quantization_config rope_scaling rope_theta torch_dtype use_bidirectional_attention".split()
)
# What a Qwen3 config says and Scratch has no field for: switched off it is dropped, so that Qwen3's checkpoints load.
_OFF_IN_QWEN3 = {"attention_bias": False, "use_sliding_window": False, "sliding_window": None}
_UNUSED_IN_QWEN3 = ("layer_types", "max_window_layers")


def raise_value_error(cls: Any) -> Any:
    """Make the constructor of a strict dataclass raise ValueError, as Python does for a value that cannot work."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: Any, **kwargs: Any) -> None:
        try:
            init(self, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from None
        except KeyError as error:  # what transformers raises for missing rope_parameters
            raise ValueError(error.args[0]) from None

    cls.__init__ = __init__
    return cls


@raise_value_error
@strict
class ScratchConfig(PreTrainedConfig):
    r"""Sizes and constants of a Scratch model.

    Args:
        vocab_size: Number of token ids, special tokens included.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the SwiGLU layer; None takes 8/3 of `hidden_size`, rounded up to a multiple of 64
            (arXiv:2002.05202 keeps the parameters of a 4x GELU layer that way).
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key/value heads, each shared by a group of query heads (arXiv:2305.13245);
            None means one for each query head.
        head_dim: Width of a head, even because RoPE turns pairs; None takes `hidden_size / num_attention_heads`.
        hidden_act: Activation of the gate, a name that transformers knows.
        max_position_embeddings: Longest sequence in tokens the model is meant for.
        initializer_range: Standard deviation of the initial weights.
        rms_norm_eps: Added to the mean square before the root.
        rope_parameters: RoPE settings, `{"rope_type": "default", "rope_theta": 10000.0}` if None.
        attention_dropout: Probability of dropping an attention weight in training.
        tie_word_embeddings: Whether the LM head is the embedding matrix.
        use_cache: Whether a forward pass returns its keys and values.

    Raises:
        ValueError: A field has an unknown name, a wrong type or a value that cannot work. The message names the
            field, the value and what to write.

    Example:
        >>> ScratchConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=512).head_dim
        16
    """

    model_type = "scratch"
    keys_to_ignore_at_inference = ["past_key_values"]

    # Parallel plans are data: the model below knows one device. q_norm and k_norm see only the local heads.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32768
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 1024
    initializer_range: float | int = 0.02
    rms_norm_eps: float | int = 1e-6
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the config that a file holds; a name that resembles a field is warned of, not refused as in code."""
        return super().from_dict({**config_dict, "_loaded": True}, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_unknown(kwargs)
        self._check_positive("hidden_size", "num_attention_heads")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = math.ceil(self.hidden_size * 8 / 3 / 64) * 64
        if self.head_dim is None:
            heads = self.num_attention_heads
            if self.hidden_size % heads:
                raise ValueError(
                    f"num_attention_heads={heads} does not divide hidden_size={self.hidden_size}; use hidden_size="
                    f"{math.ceil(self.hidden_size / heads) * heads}, another number of heads, or set head_dim."
                )
            self.head_dim = self.hidden_size // heads
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        # Complete in every checkpoint, and never a reference to the repository that the weights came from:
        # `save_pretrained` alone would leave out AutoModel, which vLLM loads, and keep such a reference.
        self.auto_map = {
            "AutoConfig": "configuration_scratch.ScratchConfig",
            "AutoModel": "modeling_scratch.ScratchModel",
            "AutoModelForCausalLM": "modeling_scratch.ScratchForCausalLM",
        }

    def validate_architecture(self) -> None:
        """Raise ValueError for sizes that do not fit each other. Called at construction and before saving."""
        self._check_positive("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        self._check_positive("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")
        self._check_positive("initializer_range", "rms_norm_eps")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}; each key/value head serves a whole group of query "
                f"heads, so use a divisor such as num_key_value_heads={self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; RoPE turns pairs of channels, use head_dim={self.head_dim + 1}."
            )
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout={self.attention_dropout} is not in [0, 1); use 0.0 for none.")
        if self.hidden_act not in ACT2FN:
            self._refuse("hidden_act", self.hidden_act, ACT2FN, "silu")

    def validate_rope(self) -> None:
        """Raise ValueError for a RoPE type that transformers would warn of and then take for the default."""
        if self.rope_parameters["rope_type"] not in {"default", *ROPE_INIT_FUNCTIONS}:
            self._refuse("rope_type", self.rope_parameters["rope_type"], ROPE_INIT_FUNCTIONS, "default")
        super().validate_rope()

    def validate_token_ids(self) -> None:
        """Raise ValueError for a special token outside the vocabulary; -1 would silently mean the last row."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"{name}={value} is outside the vocabulary; use None or an id from 0 to {self.vocab_size - 1}."
                    )

    @staticmethod
    def _refuse(name: str, value: str, known: Iterable[str], default: str) -> None:
        near = difflib.get_close_matches(value, known, n=1) or [default]
        raise ValueError(f"{name}={value!r} is not known to transformers; did you mean {near[0]!r}?")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value <= 0:
                default = type(self).__dataclass_fields__[name].default
                mend = "leave it out" if default is None else f"use for example {name}={default}"
                raise ValueError(f"{name}={value} must be greater than 0; {mend}.")

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        for key in _UNUSED_IN_QWEN3:
            kwargs.pop(key, None)
        for key, off in _OFF_IN_QWEN3.items():
            if (value := kwargs.pop(key, off)) != off:
                raise ValueError(f"{key}={value!r} is not something Scratch can do; it needs {key}={off!r}.")
        known, loaded = {field.name for field in fields(self)}, kwargs.pop("_loaded", False)
        for key in [key for key in kwargs if not key.startswith("_") and key not in known | _KEYS_OF_THE_STACK]:
            near = difflib.get_close_matches(key, known, n=1)
            # Programs leave keys of their own in a config.json, which stay there: a newer transformers, for example.
            if near or not loaded:
                value, others = kwargs.pop(key), f"ScratchConfig has {', '.join(sorted(known))}."
                mend = f"did you mean {near[0]}={value!r}?" if near else others
                message = f"{key}={value!r} is not a field of ScratchConfig; {mend}"
                if not loaded:
                    raise ValueError(message)
                logging.get_logger(__name__).warning_once(f"{message} It has no effect.")


# A registered class takes its source file along when it is saved.
ScratchConfig.register_for_auto_class()

__all__ = ["ScratchConfig"]
