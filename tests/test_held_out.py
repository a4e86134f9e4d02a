"""What a pretraining run evaluates on: little enough not to cost time, the same in the whole run, and honest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrain import arguments, corpus, metrics, stop_at, trainer
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoTokenizer

from hf_scratch.tokenizer import separator_of
from training.engine.batches import PackedDocuments
from training.engine.config import PretrainConfig
from training.engine.held_out import affordable_tokens, sample_held_out
from training.engine.token_shards import Shards, load_shards
from training.pretrain import main as pretrain
from training.stage.files import read_json

__all__ = ["corpus"]  # a fixture that is used here too


def documents(shards: Shards) -> list[list[int]]:
    stream = shards.tokens[0 : len(shards.tokens)].tolist()
    return [stream[a + 1 : b] for a, b in zip(shards.starts, [*shards.starts[1:], len(stream) - 1], strict=True)]


@pytest.mark.parametrize(("limit", "context"), [(2, 128), (300, 4096), (1500, 4096), (1500, 128), (3000, 16)])
def test_a_sample_is_whole_documents_from_all_over_the_text(corpus: Path, limit: int, context: int) -> None:
    tokenizer, said = AutoTokenizer.from_pretrained(corpus / "tokenizer"), []
    whole = load_shards(corpus / "data", "val")
    found = sample_held_out(whole, limit, context, tokenizer, said.append)
    again = sample_held_out(whole, limit, context, tokenizer, said.append)
    assert documents(found) == documents(again) and said[0] == said[1]
    assert said[0].startswith(
        f"evaluations read {len(found.tokens) - 1:,} of the {len(whole.tokens):,} held-out tokens"
    )
    assert limit / 2 <= len(found.tokens) - 1 <= limit and found.tokens[-1] == separator_of(tokenizer)
    texts, originals = documents(found), documents(whole)
    assert sum(text in originals for text in texts) >= len(texts) - 1
    assert all(any(original[: len(text)] == text for original in originals) for text in texts)
    assert found.num_bytes == sum(len(tokenizer.decode(text).encode()) for text in texts)
    if limit > 300:
        places = sorted(originals.index(text) for text in texts if text in originals)
        assert max(np.diff([-1, *places, len(originals)])) <= 3 * len(originals) / len(places)
    assert sample_held_out(whole, 10_000, context, tokenizer, said.append) is whole and len(said) == 2


def test_bytes_are_counted_as_the_data_stage_counts_them(corpus: Path) -> None:
    tokenizer, whole = AutoTokenizer.from_pretrained(corpus / "tokenizer"), load_shards(corpus / "data", "val")
    found = sample_held_out(whole, len(whole.tokens) - 2, 4096, tokenizer, print)
    assert sum(map(len, documents(whole))) - sum(map(len, documents(found))) == 1
    assert 0 < whole.num_bytes - found.num_bytes < 20


@pytest.mark.parametrize("changes", [{}, {"row_length": 64, "batch_rows": 2}])
def test_an_evaluation_costs_no_more_than_a_twentieth_of_the_steps_between(
    corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A forward pass is a third of a step: tokens are counted as the model sees them, padding included."""
    seen = {"training": 0, "evaluation": 0}

    def count(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            seen["training" if module.training else "evaluation"] += args[0].numel()

    common = {"max_steps": 40, "eval_steps": 10, "micro_batch_size": 4}
    hook = register_module_forward_pre_hook(count)
    try:
        pretrain(arguments(corpus, tmp_path, **common | changes))
    finally:
        hook.remove()
    assert 0.03 < seen["evaluation"] / 3 / seen["training"] <= 0.055
    config = PretrainConfig(output_dir="x", data=["d"], tokenizer="t", eval_steps=10, batch_rows=4, context_length=128)
    assert affordable_tokens(config) == 768


def test_windows_of_an_evaluation_do_not_overlap(corpus: Path, tmp_path: Path) -> None:
    run = trainer(corpus, tmp_path, row_length=16)
    seen = []
    run.unwrapped.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = run.evaluate()
    assert found.tokens <= sum(seen) < 1.2 * found.tokens


def test_a_run_evaluates_on_the_same_text_to_its_end(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How often is evaluated may change when a run goes on; its curve stays one curve."""
    pretrain(arguments(corpus, tmp_path / "whole", eval_steps=2, max_steps=8))
    stop_at(4, arguments(corpus, tmp_path / "run", eval_steps=2, max_steps=8))
    pretrain(arguments(corpus, tmp_path / "run", eval_steps=4, max_steps=8))
    expected, found = (
        {line["step"]: line["val_bpb"] for line in metrics(tmp_path / name) if line["val_bpb"] is not None}
        for name in ("whole", "run")
    )
    assert list(found) == [2, 4, 8] and found == {step: expected[step] for step in found}
    assert read_json(tmp_path / "run" / "stage.json")["metrics"]["val_tokens"] == 129
    assert "evaluations read 128 of the" in capsys.readouterr().out


def test_an_evaluation_is_made_in_the_precision_of_training(corpus: Path, tmp_path: Path) -> None:
    types = {}
    for precision in ("fp32", "bf16"):
        run = trainer(corpus, tmp_path / precision, precision=precision)
        hook = run.unwrapped.lm_head.register_forward_hook(
            lambda module, args, logits, key=precision: types.update({key: str(logits.dtype)})
        )
        run.evaluate()
        hook.remove()
    assert types == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}


# ---- rows ----


@pytest.mark.parametrize("context", [512, 1024])
def test_rows_are_full_and_their_documents_of_unlike_length(context: int) -> None:
    """Packed by decreasing length, the lengths of two documents of a row correlate by 0.6 to 0.9."""
    lengths = np.random.default_rng(0).normal(90, 25, 8192).clip(20, 170).astype(int)
    tokens = np.zeros(lengths.sum() + 1, np.uint16)
    rows = PackedDocuments(Shards(tokens, np.cumsum([0, *lengths[:-1]]), 1, 2), context, seed=0)
    sizes = rows.documents[:, 1]
    assert sizes.sum() >= 0.97 * (len(rows.begins) - 1) * context
    products = pairs = 0.0
    for begin, end in zip(rows.begins, rows.begins[1:], strict=False):
        off = sizes[begin:end] - sizes.mean()
        assert sizes[begin:end].sum() <= context
        products, pairs = products + off.sum() ** 2 - (off**2).sum(), pairs + (end - begin) * (end - begin - 1)
    assert products / pairs / sizes.var() < 0.15
