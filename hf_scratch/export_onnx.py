"""Writes an ONNX file with a cache of keys and values, and runs it in ONNX Runtime to compare.

One graph reads a prompt and each next token: it takes token ids and the keys and values so far, which are empty at
first, and gives logits and the keys and values that now are.
"""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from .export import Original

OPSET = 20
MAX_DIFFERENCE = 1e-4  # of logits
TOKENS = 20  # greedy ones that are compared through the cache


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors, as a graph needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return logits (B, T, vocab_size), then keys and values of each layer in turn, (B, K, past + T, D)."""
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = DynamicCache(pairs)
        seen, length = past[0].shape[2], input_ids.shape[1]
        positions = torch.arange(length).unsqueeze(0) + seen
        # The mask is made here: what transformers traces depends on whether the cache is empty.
        query, key = torch.arange(length).unsqueeze(1) + seen, torch.arange(seen + length).unsqueeze(0)
        mask = torch.where(key <= query, 0.0, torch.finfo(torch.float32).min)[None, None]
        out = self.model(input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        layers = out.past_key_values.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def write_onnx(original: "Original", folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write `model.onnx` in float32 and compare it with the model: logits, and greedy tokens through the cache.

    Raises:
        ValueError: The logits differ by more than 1e-4, or the tokens.
    """
    path = folder / "model.onnx"
    # Not the model that others use: the attention must be one that can be traced.
    model = type(original.model)(original.model.config).eval()
    model.load_state_dict(original.model.state_dict())
    model.set_attn_implementation("eager")
    trace(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    prompt = original.reference.observed["prompt_ids"]
    logits, past = run(session, model.config, prompt, None)
    difference = float(np.abs(logits[0] - original.reference.observed["logits"].numpy()).max())
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(f"ONNX Runtime's logits differ by {difference:.1e}; {MAX_DIFFERENCE:.0e} is the most.")
    tokens = [int(logits[0, -1].argmax())]
    expected = original.reference.observed["answer_ids"][:TOKENS]
    while len(tokens) < len(expected):
        logits, past = run(session, model.config, tokens[-1:], past)
        tokens.append(int(logits[0, -1].argmax()))
    if tokens != expected:
        raise ValueError(f"ONNX Runtime goes another way through its cache: {tokens}, not {expected}.")
    original.tokenizer.save_pretrained(folder)
    found = f"logits differ by at most {difference:.0e}, the same {len(tokens)} greedy tokens through the cache"
    return {path.name: found}, ("onnx", "onnxruntime", "onnxscript")


def trace(model: Any, path: Path) -> None:
    """Export the model with batch, tokens and cached tokens of any number."""
    config = model.config
    names = [f"{kind}.{i}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    past = [torch.zeros(2, config.num_key_value_heads, 3, config.head_dim) for _ in names]
    ids = torch.zeros(2, 4, dtype=torch.long)
    dim = torch.export.Dim
    batch, length, seen = dim("batch"), dim("length"), dim("seen")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no language model needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own calls
        torch.onnx.export(
            WithCache(model).eval(),
            (ids, past),
            path,
            input_names=["input_ids", *(f"past.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes={"input_ids": {0: batch, 1: length}, "past": [{0: batch, 2: seen} for _ in names]},
            opset_version=OPSET,
            dynamo=True,
            external_data=model.num_parameters() * 4 > 1_500_000_000,  # one file holds 2 GB
            verbose=False,
        )


def run(
    session: onnxruntime.InferenceSession, config: Any, ids: list[int], past: list[np.ndarray] | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return logits (1, T, vocab_size) and the cache after the tokens; without a cache, begin with an empty one."""
    names = [found.name for found in session.get_inputs()]
    if past is None:
        empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype=np.float32)
        past = [empty] * (len(names) - 1)
    given = dict(zip(names, [np.array([ids], dtype=np.int64), *past], strict=True))
    logits, *present = session.run(None, given)
    return logits, present
