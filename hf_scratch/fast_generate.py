"""Decoding of one text on a CPU, several times as fast as the stock loop while the model is small.

A small model's time goes into what a framework does around its operations. So this step does few of them, without
masks, cache objects and hooks, and in numpy, where an operation on a small array costs a fraction of torch's.
Preparation, sampling and ends stay `transformers`' own, and a call that this loop cannot do (a batch, beams, a GPU,
another dtype) is the stock one. A release ships the file as `custom_generate/generate.py`, where
`from_pretrained(..., trust_remote_code=True)` finds it and makes it the model's `generate`.

Shape suffixes: H query heads, K key/value heads, G = H / K, S key positions, D head_dim, C hidden, M inner width
of the MLP, N = H + K, V vocabulary.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EosTokenCriteria, MaxLengthCriteria

# Arguments of `generate` that the loop or the preparation before it takes; settings of GenerationConfig come on top.
ARGUMENTS = {
    "inputs", "input_ids", "attention_mask", "generation_config", "logits_processor", "stopping_criteria", "streamer",
}  # fmt: skip
# Settings that ask for another algorithm or for more than the tokens.
OTHER_WAYS = (
    "return_dict_in_generate", "penalty_alpha", "prompt_lookup_num_tokens", "assistant_early_exit", "is_assistant",
    "cache_implementation", "constraints", "force_words_ids", "dola_layers", "token_healing", "prefill_chunk_size",
)  # fmt: skip
ACTIVATIONS = "transformers.activations"  # the one file besides the model's own whose classes `Step` computes
CALLED = {"forward", "prepare_inputs_for_generation"}  # prompt tuning and offloading put their own in place of these


def generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """Do what `model.generate(*args, **kwargs)` does; one text on a CPU fast, everything else as ever."""
    if can_decode(model) and is_plain(model, args, kwargs):
        # `generate` hands the prompt to the streamer, but not the streamer to a decoding loop.
        kwargs["custom_generate"] = functools.partial(decode, streamer=kwargs.get("streamer"))
    return type(model).generate(model, *args, **kwargs)  # a release's `model.generate` is this function


def can_decode(model: Any) -> bool:
    """Whether `Step` computes this model: Scratch or Qwen3's dense one, in float32 on a CPU, as it was trained."""
    config = model.config
    if config.model_type not in ("scratch", "qwen3") or config.hidden_act != "silu" or model.training:
        return False
    if config.rope_parameters["rope_type"] in ("dynamic", "longrope"):  # their angles depend on the text's length
        return False
    if config.to_dict().get("attention_bias") or "sliding_attention" in (config.to_dict().get("layer_types") or ()):
        return False
    # A quantized or adapted layer is another class, a subclass or a wrapper, or has another type of weight, and
    # somebody waits for a hook's call.
    plain, files = {nn.Linear, nn.Embedding, nn.ModuleList}, {type(model).__module__, ACTIVATIONS}
    modules = list(model.modules())
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return (
        not hooked
        and all(type(module) in plain or type(module).__module__ in files for module in modules)
        and not any(CALLED & vars(module).keys() for module in modules)
        and all(type(p) is nn.Parameter and type(p.data) is torch.Tensor for p in model.parameters())
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    )


def is_plain(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of `generate` asks for one text, chosen token by token."""
    ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    if len(args) > 1 or not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
        return False

    def asked(name: str) -> Any:
        sources = (kwargs, vars(kwargs.get("generation_config") or model.generation_config))
        found = (source.get(name) for source in (*sources, vars(model.generation_config)))
        return next((value for value in found if value is not None), None)

    mask, pad = kwargs.get("attention_mask"), asked("pad_token_id")
    padded = pad is not None and pad in ids if mask is None else not mask.all()
    known = ARGUMENTS | vars(model.generation_config).keys()
    return (
        not padded
        and kwargs.keys() <= known
        and not any(asked(name) for name in OTHER_WAYS)
        and all(asked(name) in (None, 1) for name in ("num_beams", "num_return_sequences"))
        and asked("use_cache") is not False
    )


def decode(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    streamer: Any = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Continue a prompt (1, T) until a criterion ends it and return it with the answer; `generate` calls this."""
    length, limit = input_ids.shape[1], stopping_criteria.max_length
    cache = kwargs["past_key_values"]
    logits_1V = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    step = Step(model, cache, limit)
    ends = {i for rule in stopping_criteria if type(rule) is EosTokenCriteria for i in rule.eos_token_id.tolist()}
    rules = [rule for rule in stopping_criteria if type(rule) not in (EosTokenCriteria, MaxLengthCriteria)]
    ids = torch.cat((input_ids, input_ids.new_empty(1, limit - length)), dim=1)
    while True:
        scores_1V = logits_processor(ids[:, :length], logits_1V)
        if generation_config.do_sample:
            token = int(torch.multinomial(scores_1V.softmax(-1), num_samples=1))
        else:
            token = int(scores_1V.argmax())
        ids[0, length] = token
        length += 1
        if streamer is not None:
            streamer.put(ids[0, length - 1 : length])
        if length == limit or token in ends or any(bool(rule(ids[:, :length], None)) for rule in rules):
            break
        logits_1V = step(token, length - 1)
    if streamer is not None:
        streamer.end()
    return ids[:, :length]


class Step:
    """One token through the model: the maths of its `forward` for batch 1, with keys and values in fixed places."""

    def __init__(self, model: Any, cache: Any, limit: int) -> None:
        config, decoder = model.config, model.model
        self.eps = config.rms_norm_eps
        self.H, self.K, self.D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.embedding, self.norm, self.head = map(array, (decoder.embed_tokens, decoder.norm, model.lm_head))
        cos, sin = decoder.rotary_emb(model.lm_head.weight, torch.arange(limit).unsqueeze(0))
        self.cos_SD, self.sin_SD = cos[0].numpy(), sin[0].numpy()
        self.sin_SD[:, : self.D // 2] *= -1  # rotate_half(x) * sin == the halves of x exchanged * signed sin
        self.exchanged = np.roll(np.arange(self.D), self.D // 2)
        # Looked up once: finding a weight by its name in a module takes as long as a small operation.
        self.layers = [
            (*self.weights(layer), self.reserve(seen.keys, limit), self.reserve(seen.values, limit))
            for layer, seen in zip(decoder.layers, cache.layers, strict=True)
        ]

    def weights(self, layer: Any) -> tuple[np.ndarray, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        q_norm = array(attention.q_norm) * np.float32(attention.scaling)  # of the scores, linear in the query
        qk_norm = np.stack([q_norm] * self.H + [array(attention.k_norm)] * self.K)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = map(array, (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        return array(layer.input_layernorm), qk_norm, array(layer.post_attention_layernorm), *matrices

    def reserve(self, seen_1KSD: torch.Tensor, limit: int) -> np.ndarray:
        room_KSD = np.empty((self.K, limit, self.D), dtype=np.float32)
        room_KSD[:, : seen_1KSD.shape[2]] = seen_1KSD[0].numpy()
        return room_KSD

    def rms_norm(self, x_C: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x_C * weight * (float(x_C @ x_C) / len(x_C) + self.eps) ** -0.5

    @np.errstate(over="ignore")  # of silu far below zero, which is 0
    def __call__(self, token: int, position: int) -> torch.Tensor:
        """Return the logits (1, V) of the token after this one, which stands at `position`."""
        H, K, D, now = self.H, self.K, self.D, position + 1
        cos_D, sin_D, x_C = self.cos_SD[position], self.sin_SD[position], self.embedding[token]
        for norm_in, norm_qk, norm_out, q, k, v, o, gate, up, down, keys_KSD, values_KSD in self.layers:
            h_C = self.rms_norm(x_C, norm_in)
            # Queries and keys go through norm and rotation together, which halves the number of operations.
            qk = np.concatenate((q @ h_C, k @ h_C)).reshape(H + K, D)
            qk *= norm_qk / np.sqrt(np.einsum("ND,ND->N", qk, qk) / D + self.eps)[:, None]
            qk = qk * cos_D + qk.take(self.exchanged, 1) * sin_D
            keys_KSD[:, position] = qk[H:]
            values_KSD[:, position] = (v @ h_C).reshape(K, D)

            scores_KGS = qk[:H].reshape(K, H // K, D) @ keys_KSD[:, :now].swapaxes(1, 2)
            shares_KGS = np.exp(scores_KGS - scores_KGS.max(-1, keepdims=True))
            shares_KGS /= shares_KGS.sum(-1, keepdims=True)
            x_C = x_C + o @ (shares_KGS @ values_KSD[:, :now]).ravel()

            h_C = self.rms_norm(x_C, norm_out)
            gate_M = gate @ h_C
            x_C = x_C + down @ (gate_M / (1 + np.exp(-gate_M)) * (up @ h_C))
        return torch.from_numpy(self.head @ self.rms_norm(x_C, self.norm)).unsqueeze(0)


def array(module: Any) -> np.ndarray:
    """Return a layer's weight as numpy sees it, in the same memory."""
    return module.weight.detach().numpy()
