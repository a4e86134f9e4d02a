"""The way to stock Qwen3, whose layers ours are, and from a stock checkpoint to ours."""

import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.export.original import Original, load_pair
from hf_scratch.hub import client
from hf_scratch.hub.card import read_metadata
from hf_scratch.hub.check import Check, require
from hf_scratch.hub.files import read_config
from hf_scratch.hub.verify import make_reference, verify

MAX_SHARD = "5GB"
OFF_IN_QWEN3 = ("attention_bias", "use_sliding_window", "sliding_window")  # what Scratch has no field for


# ---- to stock Qwen3 ----


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


# ---- from stock Qwen3 ----


def import_stock(model: str, revision: str, output: Path) -> list[Check]:
    """Write a Qwen3 dense checkpoint as a Scratch checkpoint and return the checks that it passed.

    Raises:
        ValueError: Another architecture, a setting that Scratch does not have, an output that exists, or a check
            that failed.
    """
    if output.exists():
        raise ValueError(f"{output} exists; give a new folder.")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before the download
    source = client.find_folder(model, revision, Path(HF_HUB_CACHE))
    config = read_config(source)
    if config.get("model_type") != "qwen3":
        raise ValueError(f"{model} is of type {config.get('model_type')!r}; only dense `qwen3` checkpoints fit.")
    stock, tokenizer = load_pair(source)
    scratch = as_scratch(stock)
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


def as_scratch(stock: Any) -> ScratchForCausalLM:
    """Return a stock Qwen3 model as a Scratch model with the same weights.

    Raises:
        ValueError: It has a setting that Scratch does not have.
    """
    scratch: ScratchForCausalLM = ScratchForCausalLM(as_scratch_config(stock.config)).to(stock.dtype)
    scratch.load_state_dict(stock.state_dict(), strict=True)
    scratch.generation_config = stock.generation_config
    return scratch


def as_scratch_config(config: Any) -> ScratchConfig:
    """Return the sizes of a stock Qwen3 model as those of a Scratch model.

    Raises:
        ValueError: It has a setting that Scratch does not have.
    """
    given = config.to_dict()
    names = [*(field.name for field in fields(ScratchConfig)), *OFF_IN_QWEN3]
    kept = {name: given[name] for name in names if name in given and name not in ("architectures", "dtype")}
    return ScratchConfig(**kept)


def write_origin(hub_id: str | None, source: Path, folder: Path) -> None:
    """Write a card with the Hub id and the licence of the original, which a release made from it states."""
    data = ModelCardData(base_model=hub_id, license=read_metadata(source).get("license"), library_name="transformers")
    text = f"---\n{data.to_yaml()}\n---\n\nThe weights of {hub_id or 'a Qwen3 model'} as a Scratch checkpoint.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
