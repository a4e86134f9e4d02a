"""Writes an ONNX file with a cache of keys and values, and runs it in ONNX Runtime to compare.

One graph reads a prompt and each next token: it takes token ids, mask, positions and the keys and values so far, which
are empty at first, and gives logits and the keys and values that now are. Names and files are those that optimum and
transformers.js look for. optimum's own exporter would do the same, but wants transformers 4.
"""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import DynamicCache

from hf_scratch.export.original import Original, greedy
from hf_scratch.export.transformers import stock_config

INPUTS = ("input_ids", "attention_mask", "position_ids")
OPSET = 20
MAX_DIFFERENCE = 1e-4  # of logits
TOKENS = 20  # greedy ones that are compared through the cache


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors, as a graph needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return logits (B, T, vocab_size), then keys and values of each layer in turn, (B, K, past + T, D).

        Args:
            input_ids: (B, T).
            attention_mask: 1 for a token, 0 for padding, (B, past + T).
            position_ids: (B, T), from 0 at the first token of each row.
            past: Keys and values of each layer in turn, (B, K, past, D).
        """
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        seen, length = past[0].shape[2], input_ids.shape[1]
        # The mask is made here: what transformers traces depends on whether the cache is empty.
        query, key = torch.arange(length).unsqueeze(1) + seen, torch.arange(seen + length).unsqueeze(0)
        visible_B1TS = (key <= query) & (attention_mask[:, None, None, :] != 0)
        # Padding sees itself: a row of nothing but minus infinity would be no number.
        mask_B1TS = torch.where(visible_B1TS | (key == query), 0.0, torch.finfo(torch.float32).min)
        out = self.model(
            input_ids, attention_mask=mask_B1TS, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        layers = out.past_key_values.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def write_onnx(original: Original, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write `model.onnx` in float32 and compare it with the model: logits, and greedy tokens through the cache.

    Beside it lie the config of stock `qwen3` and the tokenizer, as optimum and transformers.js look for them.

    Raises:
        ValueError: The logits differ by more than 1e-4, one by one or in a padded batch, or the tokens.
    """
    path = folder / "model.onnx"
    # Not the model that others use: the attention must be one that can be traced.
    model = copy.deepcopy(original.in_float32)
    model.set_attn_implementation("eager")
    trace(model, path)
    found = compare(model, path, original.reference.observed["prompt_ids"])
    config = stock_config(model.config)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    original.tokenizer.save_pretrained(folder)
    return {path.name: found}, ("onnx", "onnxruntime", "onnxscript")


def compare(model: Any, path: Path, prompt: list[int]) -> str:
    """Say how close ONNX Runtime comes to the model: in logits, and in greedy tokens through the cache.

    Raises:
        ValueError: The logits differ by more than 1e-4, one by one or in a padded batch, or the tokens.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    longer = len(prompt[:3])
    room = model.config.max_position_embeddings - len(prompt) - longer
    expected = greedy(model, prompt, max(1, min(TOKENS, room)))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits.numpy()
    single = Session(session, [prompt])
    # Beside a text that is longer, padding must change nothing, neither at first nor through the cache.
    padded = Session(session, [prompt, [*prompt[:3], *prompt]])
    difference = float(np.abs(single.logits - logits).max())
    check_difference(difference, "logits")
    check_difference(float(np.abs(padded.logits[:1, longer:] - logits).max()), "logits of a padded text")
    tokens = [int(single.logits[0, -1].argmax())]
    while len(tokens) < len(expected.tokens):
        single.feed([tokens[-1:]])
        padded.feed([tokens[-1:]] * 2)
        check_difference(
            float(np.abs(padded.logits[:1] - single.logits).max()), "logits of a padded text with a cache"
        )
        tokens.append(int(single.logits[0, -1].argmax()))
    if not expected.agrees(tokens):
        raise ValueError(f"ONNX Runtime goes another way through its cache: {tokens}, not {expected.tokens}.")
    same = expected.parting(tokens)
    return f"logits differ by at most {difference:.0e}, the same {same} greedy tokens through the cache"


def check_difference(difference: float, what: str) -> None:
    """Raise ValueError if ONNX Runtime's logits are too far from the model's."""
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(f"ONNX Runtime's {what} differ by {difference:.1e}; {MAX_DIFFERENCE:.0e} is the most.")


def trace(model: Any, path: Path) -> None:
    """Export the model with batch, tokens and cached tokens of any number, under the names that optimum gives them."""
    config = model.config
    names = [f"{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    past = [torch.zeros(2, config.num_key_value_heads, 3, config.head_dim) for _ in names]
    # Three tensors of their own: one that is given twice becomes one input.
    ids, positions = torch.zeros(2, 4, dtype=torch.long), torch.arange(3, 7).repeat(2, 1)
    mask = torch.ones(2, 7, dtype=torch.long)
    any_number = torch.export.Dim.AUTO
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no language model needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own calls
        torch.onnx.export(
            WithCache(model).eval(),
            (ids, mask, positions, past),
            path,
            input_names=[*INPUTS, *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=(*({0: any_number, 1: any_number},) * 3, [{0: any_number, 2: any_number} for _ in names]),
            opset_version=OPSET,
            dynamo=True,
            external_data=model.num_parameters() * 4 > 1_500_000_000,  # one file holds 2 GB
            verbose=False,
        )


class Session:
    """Texts in ONNX Runtime, padded on the left: `logits` (B, T, vocab_size) of what was fed last, and the cache."""

    def __init__(self, session: onnxruntime.InferenceSession, rows: list[list[int]]) -> None:
        self.session = session
        longest = max(map(len, rows))
        self.mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=np.int64)
        caches = [found for found in session.get_inputs() if found.name not in INPUTS]
        heads, width = caches[0].shape[1], caches[0].shape[3]
        self.past = {found.name: np.zeros((len(rows), heads, 0, width), dtype=np.float32) for found in caches}
        self.run([[0] * (longest - len(row)) + row for row in rows])

    def feed(self, rows: list[list[int]]) -> None:
        """Read tokens more of each text, the same number of each."""
        self.mask = np.concatenate((self.mask, np.ones_like(rows)), axis=1)
        self.run(rows)

    def run(self, rows: list[list[int]]) -> None:
        ids = np.array(rows, dtype=np.int64)
        positions = (self.mask.cumsum(axis=1) - 1).clip(0)[:, -ids.shape[1] :]
        given = dict(zip(INPUTS, (ids, self.mask, positions), strict=True))
        self.logits, *present = self.session.run(None, given | self.past)
        self.past = dict(zip(self.past, present, strict=True))
