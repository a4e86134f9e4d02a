"""The Scratch decoder: token embedding, N pre-norm layers of attention and SwiGLU, final norm, LM head.

Attention is causal and grouped-query, with an RMSNorm on each query and key head and rotary positions. Names and
maths equal Qwen3's dense model, so that a checkpoint is a stock `qwen3` one but for its config.

Shape suffixes: B batch, T query positions, S key positions, H query heads, K key/value heads, D head_dim, C hidden.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scratch import ScratchConfig


class ScratchRMSNorm(nn.Module):
    """Divides by the root mean square over the last dimension (arXiv:1910.07467), in float32 whatever the input."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_fp32 = x.float()
        x_fp32 = x_fp32 * torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x_fp32.to(x.dtype)


def residual_projection(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer whose output is added to the residual stream; the mark gives it smaller initial weights."""
    # Not a subclass: quantizers look for nn.Linear itself.
    linear: Any = nn.Linear(in_features, out_features, bias=False)
    linear.adds_to_residual = True
    return linear


class ScratchMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class ScratchRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions (arXiv:2104.09864); other `rope_type`s come from transformers.

    The class name and `original_inv_freq` are how transformers finds the buffers that it must fill again after it
    built the model on the meta device. They are not saved.
    """

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: ScratchConfig, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """Return theta^(-2i/D) for i < D/2, float32, and the factor 1 on the cosines and sines."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, (B, T, D) each, in the dtype of x."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles_BTD = torch.cat((angles, angles), dim=-1)
        cos, sin = angles_BTD.cos() * self.attention_scaling, angles_BTD.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[i], x[i + D/2]) by 90 degrees. Unlike the paper, pairs are D/2 apart, as in Llama."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x_BHTD: torch.Tensor, cos_BTD: torch.Tensor, sin_BTD: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels by its position's angle."""
    return x_BHTD * cos_BTD.unsqueeze(1) + rotate_half(x_BHTD) * sin_BTD.unsqueeze(1)


def eager_attention_forward(
    module: "ScratchAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, softmax(q k^T * scaling + mask) v: the one kernel that can return its weights.

    From query (B, H, T, D), key and value (B, K, S, D) and a mask (B, 1, T, S) that is added to the scores, to output
    (B, T, H, D) and weights (B, H, T, S).
    """
    groups = module.num_key_value_groups
    key_BHSD, value_BHSD = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores_BHTS = query @ key_BHSD.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores_BHTS = scores_BHTS + attention_mask
    weights_BHTS = nn.functional.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BHTS = nn.functional.dropout(weights_BHTS, p=dropout, training=module.training)
    return (weights_BHTS @ value_BHSD).transpose(1, 2).contiguous(), weights_BHTS


class ScratchAttention(nn.Module):
    """Causal grouped-query attention with QK-norm and RoPE; the kernel is the one that the config names."""

    def __init__(self, config: ScratchConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = residual_projection(config.num_attention_heads * config.head_dim, config.hidden_size)
        # Unlike OLMo 2, the norm is over one head's channels, so it does not depend on how heads are sharded.
        self.q_norm = ScratchRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = ScratchRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, T, C) to (B, T, C), and give the weights (B, H, T, S) where the kernel has them."""
        batch_and_time = hidden_states.shape[:-1]
        # -1 heads: under tensor parallelism a rank holds only its share of them.
        by_head = (*batch_and_time, -1, self.head_dim)
        q_BHTD = self.q_norm(self.q_proj(hidden_states).view(by_head)).transpose(1, 2)
        k_BKTD = self.k_norm(self.k_proj(hidden_states).view(by_head)).transpose(1, 2)
        v_BKTD = self.v_proj(hidden_states).view(by_head).transpose(1, 2)

        cos_BTD, sin_BTD = position_embeddings
        q_BHTD, k_BKTD = apply_rotary(q_BHTD, cos_BTD, sin_BTD), apply_rotary(k_BKTD, cos_BTD, sin_BTD)
        if past_key_values is not None:
            k_BKTD, v_BKTD = past_key_values.update(k_BKTD, v_BKTD, self.layer_idx)

        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        out_BTHD, weights = kernel(
            self, q_BHTD, k_BKTD, v_BKTD, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out_BTHD.reshape(*batch_and_time, -1).contiguous()), weights


class ScratchDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ScratchConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ScratchAttention(config, layer_idx)
        self.mlp = ScratchMLP(config)
        self.input_layernorm = ScratchRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ScratchRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Map (B, T, C) to (B, T, C); keyword arguments go to the attention."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class ScratchPreTrainedModel(PreTrainedModel):
    """What the library must know about the architecture, and its initial weights."""

    config: ScratchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScratchDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ScratchDecoderLayer, "attentions": ScratchAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range), and 1/sqrt(2N) of it for the 2N projections that add to the residual stream,
        so that its variance at the start does not grow with depth (GPT-2, section 2.3)."""
        super()._init_weights(module)
        if getattr(module, "adds_to_residual", False):
            std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)


class ScratchModel(ScratchPreTrainedModel):
    """The decoder without its LM head."""

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__(config)
        # Unlike Qwen3: a token that pads and also separates documents or ends answers is one to learn.
        pad, ends = config.pad_token_id, config.eos_token_id
        learnt = [config.bos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, None if pad in learnt else pad)
        self.layers = nn.ModuleList(ScratchDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ScratchRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ScratchRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: Token ids (B, T), or give `inputs_embeds` (B, T, C).
            attention_mask: 1 for a token, 0 for padding, (B, past + T). None means no padding.
            position_ids: (B, T). Positions that start again at 0 inside a row mark packed documents, which then do
                not see each other; this needs `attention_mask` and `past_key_values` to be None.
            past_key_values: Keys and values of the tokens before.
            use_cache: Whether to return keys and values.

        Returns:
            Last hidden states (B, T, C) after the final norm, and the cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        given_positions = position_ids
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)

        # The mask comes before a new cache is made: packed documents are recognised only without a cache, and a
        # cache that is still empty must not make them visible to each other. Positions that were not given are not
        # looked at, which would make a GPU wait.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=given_positions,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class ScratchForCausalLM(ScratchPreTrainedModel, GenerationMixin):
    """The decoder with its LM head: logits of the next token, and the loss if labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__(config)
        self.model = ScratchModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the decoder and the head; arguments as in `ScratchModel.forward`, and:

        Args:
            labels: Token ids (B, T), not shifted; -100 carries no loss.
            logits_to_keep: Compute logits of the last so many positions, or of these indices; 0 means all.

        Returns:
            The mean cross-entropy in nats if labels are given, logits (B, T, vocab_size), and the cache.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Nothing may stand between the last hidden state and the head: TRL and vLLM compute the head themselves.
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# A registered class takes its source file along when it is saved.
ScratchModel.register_for_auto_class("AutoModel")
ScratchForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["ScratchForCausalLM", "ScratchModel", "ScratchPreTrainedModel"]
