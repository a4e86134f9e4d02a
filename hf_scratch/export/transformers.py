"""Exports a model for other programs, measures what that changed, and imports a stock checkpoint.

Each format is written beside its place, loaded by the program that it is for, compared with the original, and only
then put where it belongs and listed on the card. What may differ is stated there as it was measured.
"""

import copy
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.bits_per_byte import Text, bits_per_byte, encode
from hf_scratch.export.record import RECORD, check_exports, list_on_card, read_records, write_record
from hf_scratch.hub import client as hub
from hf_scratch.hub.card import read_metadata
from hf_scratch.hub.files import Check, read_config
from hf_scratch.hub.verify import Reference, load_reference, make_reference, observe, require, verify
from hf_scratch.token_ids import refuse_other_tokenizer
from hf_scratch.tokenizer import keep_control_tokens_text, require_fit

MAX_SHARD = "5GB"
MAX_TOKENS = 2**16  # of held-out text to measure bits per byte on
MAX_WORSE = 0.01  # in bits per byte, that 8-bit weights may cost
TIE = 1e-3  # of logits, between which another order of summation decides
OFF_IN_QWEN3 = ("attention_bias", "use_sliding_window", "sliding_window")  # what Scratch has no field for


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

    def agrees(self, found: list[int]) -> bool:
        """Whether the tokens are the same up to where two were as likely, between which any rounding decides."""
        same = self.parting(found)
        return same == len(self.tokens) or self.margins[same] < TIE


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


def export(
    model: str, kind: str, output: Path | None, text: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Export a folder or a repository of the Hub to a format and return the record of it.

    Raises:
        ValueError: The format cannot hold this model, what was written failed a check, or other files lie where the
            export should; nothing was put in place.
        ImportError: The extra `export` is not installed.
    """
    source = hub.find_folder(model, "main", Path(HF_HUB_CACHE))
    if output is None and not Path(model).is_dir():
        raise ValueError(f"{model} is not a folder; say with --output where the export should lie.")
    folder = output or source / kind
    require_replaceable(folder, kind)
    original = load_original(source, text)
    say(f"{original.model.num_parameters():,} parameters; writing and verifying {folder} ...")
    place = folder.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
        beside = Path(scratch) / place.name
        beside.mkdir()
        measured, packages = writer(kind)(original, beside)
        versions = {name: version(name) for name in ("torch", "transformers", *packages)}
        write_record(beside, kind, original.reference.observed["weights"], measured, versions)
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
    if output is None:
        list_on_card(source)
        require(check_exports(source, original.reference.observed["weights"]), f"the exports in {source}")
        return read_records(source)[kind]
    return read_records(folder.parent).get(kind) or {"measured": measured}


def require_replaceable(folder: Path, kind: str) -> None:
    """Raise ValueError if the folder holds anything but an earlier export to this format."""
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ours = {RECORD, *record["files"]} if record.get("format") == kind else set()
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - ours)):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no part of an export to {kind}; give a new folder with --output, "
            "or move what lies there."
        )


def writer(kind: str) -> Callable[[Original, Path], tuple[dict[str, str], tuple[str, ...]]]:
    """Return the function that writes a format, verifies it, and returns what it measured and with which packages."""
    try:
        if kind == "gguf":
            from hf_scratch.export.gguf import write_gguf

            return write_gguf
        if kind == "onnx":
            from hf_scratch.export.onnx import write_onnx

            return write_onnx
    except ImportError as error:
        raise missing_extra(error) from None
    return {"transformers": write_stock, "int8": write_int8}[kind]


def missing_extra(error: ImportError) -> ImportError:
    """Return the error that names what to install."""
    return ImportError(f"this format needs {error.name}; install it with `pip install 'hf_scratch[export]'`.")


def load_original(source: Path, text: Path | None) -> Original:
    """Load a Scratch or Qwen3 model with what it said when it was trained, or what it says now."""
    kind = read_config(source).get("model_type")
    if kind not in ("scratch", "qwen3"):
        raise ValueError(f"{source} holds a model of type {kind!r}; only scratch and qwen3 can be exported.")
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    require_fit(tokenizer, model)
    keep_control_tokens_text(tokenizer)
    now = make_reference(model, tokenizer)
    reference = load_reference(source) or now
    if reference.observed["weights"] != now.observed["weights"]:
        raise ValueError(f"the weights in {source} are not those that the release was made with; make it again.")
    return Original(model, tokenizer, reference, read_held_out(source, text, tokenizer))


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


# ---- transformers: stock qwen3 ----


def write_stock(original: Original, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write a stock `qwen3` checkpoint with equal weights; it must give equal logits, bit for bit."""
    save_stock(original, folder)
    checks = verify(folder, original.reference)
    require(checks, "the stock checkpoint")
    found = next(check for check in checks if check.name == "logits equal")
    return {"": f"logits {found.detail}, greedy answer equal"}, ()


def save_stock(original: Original, folder: Path) -> None:
    """Write the model as transformers' own Qwen3."""
    model = original.model
    twin = Qwen3ForCausalLM(stock_config(model.config)).to(model.dtype)
    twin.load_state_dict(model.state_dict(), strict=True)
    twin.generation_config = model.generation_config
    twin.save_pretrained(folder, max_shard_size=MAX_SHARD)
    original.tokenizer.save_pretrained(folder)


def stock_config(config: Any) -> Qwen3Config:
    """Return a model's sizes as transformers' own Qwen3 names them."""
    names = set(Qwen3Config().to_dict()) - {"architectures", "auto_map", "model_type", "transformers_version", "dtype"}
    given = config.to_dict()
    return Qwen3Config(**{name: given[name] for name in sorted(names) if name in given})


# ---- int8 ----


def write_int8(original: Original, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the stock checkpoint with its linear layers in 8 bits, and measure what that costs."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise missing_extra(error) from None
    from transformers import TorchAoConfig

    with tempfile.TemporaryDirectory() as stock:
        save_stock(original, Path(stock))
        quantized = AutoModelForCausalLM.from_pretrained(
            stock, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), dtype="auto"
        )
    quantized.save_pretrained(folder, max_shard_size=MAX_SHARD)
    original.tokenizer.save_pretrained(folder)
    checks, observed = observe(folder, original.reference, base_loads=False)
    require(checks, "the 8-bit checkpoint")
    assert observed is not None, "all checks passed"
    return {"": differences(original, quantized, observed)}, ("torchao",)


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


# ---- the other way ----


def import_stock(model: str, revision: str, output: Path) -> list[Check]:
    """Write a Qwen3 dense checkpoint as a Scratch checkpoint and return the checks that it passed.

    Raises:
        ValueError: Another architecture, a setting that Scratch does not have, an output that exists, or a check
            that failed.
    """
    if output.exists():
        raise ValueError(f"{output} exists; give a new folder.")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before the download
    source = hub.find_folder(model, revision, Path(HF_HUB_CACHE))
    config = read_config(source)
    if config.get("model_type") != "qwen3":
        raise ValueError(f"{model} is of type {config.get('model_type')!r}; only dense `qwen3` checkpoints fit.")
    stock = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    require_fit(tokenizer, stock)
    keep_control_tokens_text(tokenizer)
    given = stock.config.to_dict()
    names = [*(field.name for field in fields(ScratchConfig)), *OFF_IN_QWEN3]
    kept = {name: given[name] for name in names if name in given and name not in ("architectures", "dtype")}
    scratch = ScratchForCausalLM(ScratchConfig(**kept)).to(stock.dtype)
    scratch.load_state_dict(stock.state_dict(), strict=True)
    scratch.generation_config = stock.generation_config
    reference = make_reference(stock, tokenizer)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=output.name) as beside:
        folder = Path(beside) / "model"
        scratch.save_pretrained(folder, max_shard_size=MAX_SHARD)
        tokenizer.save_pretrained(folder)
        write_origin(None if Path(model).is_dir() else model, source, folder)
        checks = verify(folder, reference)
        require(checks, "the imported model")
        os.replace(folder, output)
    return checks


def write_origin(hub_id: str | None, source: Path, folder: Path) -> None:
    """Write a card with the Hub id and the licence of the original, which a release made from it states."""
    data = ModelCardData(base_model=hub_id, license=read_metadata(source).get("license"), library_name="transformers")
    text = f"---\n{data.to_yaml()}\n---\n\nThe weights of {hub_id or 'a Qwen3 model'} as a Scratch checkpoint.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
