"""The model that is exported, and how another form of it is compared with it."""

import copy
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.bits_per_byte import Text, bits_per_byte, encode
from hf_scratch.hub.files import read_config
from hf_scratch.hub.verify import Reference, load_reference, make_reference
from hf_scratch.token_ids import refuse_other_tokenizer
from hf_scratch.tokenizer import keep_control_tokens_text, require_fit

MAX_TOKENS = 2**16  # of held-out text to measure bits per byte on
MAX_WORSE = 0.01  # in bits per byte, that 8-bit weights may cost
TEXTS = (  # that another program must read into the same tokens: spaces, digits, accents, other scripts
    "Once upon a time, there was a fox who didn't sleep.\n\n  It's 12345 o'clock!",
    "Ünïcödé — 東京, привет, 🦊🎉 \t tabs\r\nand\u00a0spaces   ",
)
TIE = 1e-3  # of logits, between which another order of summation decides


@dataclass(frozen=True)
class Original:
    """The model to export, and what it says."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference
    held_out: Text | None  # to measure bits per byte on

    @functools.cached_property
    def in_float32(self) -> PreTrainedModel:
        """The same weights, computed in float32, which other programs can be held to: bfloat16 rounds each sum."""
        return self.model if self.model.dtype == torch.float32 else copy.deepcopy(self.model).float()


@dataclass(frozen=True)
class Greedy:
    """The likeliest tokens after a prompt, and how much more than the next likely one each had, in logits."""

    tokens: list[int]
    margins: list[float]

    def parting(self, found: list[int]) -> int:
        """Return how many tokens are the same."""
        pairs = zip(self.tokens, found, strict=False)
        return next((i for i, (ours, other) in enumerate(pairs) if ours != other), min(len(self.tokens), len(found)))

    def agrees(self, found: list[int], tie: float = TIE) -> bool:
        """Whether the tokens are the same up to where two were as likely, between which any rounding decides."""
        same = self.parting(found)
        return same == len(self.tokens) or self.margins[same] < tie


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int, never: Sequence[int] = ()) -> Greedy:
    """Return greedy tokens past where an answer would end, whatever the model's settings say of penalties."""
    ids, cache, tokens, margins = torch.tensor([prompt]), DynamicCache(config=model.config), [], []
    for _ in range(count):
        logits_V = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
        logits_V[list(never)] = -torch.inf
        best, token = logits_V.topk(2)
        tokens.append(int(token[0]))
        margins.append(float(best[0] - best[1]))
        ids = token[:1].unsqueeze(0)
    return Greedy(tokens, margins)


def load_original(source: Path, text: Path | None) -> Original:
    """Load a Scratch or Qwen3 model with what it said when it was trained, or what it says now."""
    kind = read_config(source).get("model_type")
    if kind not in ("scratch", "qwen3"):
        raise ValueError(f"{source} holds a model of type {kind!r}; only scratch and qwen3 can be exported.")
    model, tokenizer = load_pair(source)
    now = make_reference(model, tokenizer)
    reference = load_reference(source) or now
    if reference.observed["weights"] != now.observed["weights"]:
        raise ValueError(f"the weights in {source} are not those that the release was made with; make it again.")
    return Original(model, tokenizer, reference, read_held_out(source, text, tokenizer))


def load_pair(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in its own number format, and its tokenizer, which keeps what people write text."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    require_fit(tokenizer, model)
    keep_control_tokens_text(tokenizer)
    return model, tokenizer


def read_held_out(source: Path, file: Path | None, tokenizer: PreTrainedTokenizerBase) -> Text | None:
    """Return the text of the file, else held-out documents of the run whose folder holds the model's.

    Raises:
        ValueError: The file has no text.
    """
    if file:
        content = file.read_text(encoding="utf-8")
        if not content:
            raise ValueError(f"{file} is empty; give a file with text that the model has not seen.")
        return encode(tokenizer, [content])
    data = source.absolute().parents[1] / "data"  # of RUN, for RUN/release/model and RUN/pretrain/model
    return read_run(data, tokenizer) if (data / "meta.json").is_file() else None


def read_run(data: Path, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Return held-out documents that the stage `data` wrote: those that begin in the first `MAX_TOKENS` tokens.

    Raises:
        ValueError: They were made with another tokenizer.
    """
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    refuse_other_tokenizer(meta.get("tokenizer_sha256"), tokenizer, str(data), print)
    shard = meta["val"].get("shards", ["val"])[0]
    tokens = np.memmap(data / f"{shard}.bin", dtype=meta["dtype"], mode="r")
    starts = np.load(data / f"{shard}.starts.npy")
    ends = np.append(starts[1:], len(tokens) - 1)[starts < MAX_TOKENS]
    starts = starts[: len(ends)]
    documents = [tokens[start + 1 : end].tolist() for start, end in zip(starts, ends, strict=True)]
    num_bytes = np.array([len(text.encode()) for text in tokenizer.batch_decode(documents)])
    return Text(tokens[: ends[-1] + 1], starts, num_bytes)


def differences(original: Original, other: Any, observed: dict[str, Any]) -> str:
    """Say how far a quantized model is from the original: logits of the conversation, bits per byte of held-out text.

    Raises:
        ValueError: Bits per byte are worse by more than `MAX_WORSE`.
    """
    expected = original.reference.observed["logits"]
    found = f"logits differ by {float((observed['logits'] - expected).norm() / expected.norm()):.2%}"
    return f"{found}, {compare_bits(original, measure_bits(original, original.model), other)}"


def measure_bits(original: Original, model: Any) -> float:
    """Return the bits per byte that a model needs for the held-out text, nan if there is none."""
    text, context = original.held_out, original.model.config.max_position_embeddings
    if text is None:
        return math.nan
    num_bytes = int(text.num_bytes.sum())
    return bits_per_byte(model, text.tokens, text.starts, num_bytes, context, "cpu").bits_per_byte


def compare_bits(original: Original, before: float, other: Any) -> str:
    """Say how many bits per byte of held-out text another model needs, beside the number before.

    Raises:
        ValueError: It needs more by more than `MAX_WORSE`.
    """
    text = original.held_out
    if text is None:
        return "bits per byte not measured, for want of held-out text"
    after = measure_bits(original, other)
    change = after / before - 1
    if change > MAX_WORSE:
        raise ValueError(
            f"8 bits make bits per byte of held-out text {change:.1%} worse; {MAX_WORSE:.0%} is the most."
        )
    return (
        f"{before:.4f} to {after:.4f} bits per byte ({change:+.2%}) of {text.num_bytes.sum():,} bytes of held-out text"
    )


def missing_extra(error: ImportError) -> ImportError:
    """Return the error that names what to install."""
    return ImportError(f"this format needs {error.name}; install it with `pip install 'hf_scratch[export]'`.")
