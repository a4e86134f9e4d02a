"""The plan: its formulas are right, its memory is what a run uses, and each preset has the size of its name."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import arguments, corpus, one_thread
from transformers import AutoTokenizer, Qwen3ForCausalLM

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.export.transformers import stock_config
from training.engine import device as hardware
from training.engine.cost import (
    Memory,
    count_parameters,
    flops_per_token,
    keeps_whole_gradient,
    largest_micro_batch,
    training_memory,
    utilisation,
)
from training.engine.estimate import memory_of, read_recipe
from training.engine.gpus import peak_flops
from training.engine.save import save_model
from training.plan import main as plan
from training.pretrain import main as pretrain

__all__ = ["corpus"]  # a fixture that is used here too

RECIPES = Path(__file__).parent.parent / "training" / "recipes"
PRESETS = [path.name for path in sorted(RECIPES.iterdir()) if re.search(r"-\d+[mb]$", path.name)]


def test_operations_of_a_token_are_counted_as_the_matrix_products_that_run(tiny_config: ScratchConfig) -> None:
    """Against torch's own counter, for one sequence, with attention written out and no mask saved on."""
    from torch.utils.flop_counter import FlopCounterMode

    for tied in (True, False):
        config = ScratchConfig(**{**tiny_config.to_dict(), "tie_word_embeddings": tied})
        model = ScratchForCausalLM(config)
        model.set_attn_implementation("eager")
        ids = torch.zeros(1, 32, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        norms = sum(param.numel() for param in model.parameters() if param.ndim == 1)
        assert counter.get_total_flops() / 32 == flops_per_token(config, 32) - 6 * norms


def test_utilisation_is_the_share_of_the_peak() -> None:
    # 124M parameters: 6N + 12 L C T = 0.85 GFLOP a token; 367,000 of them a second are 312 TFLOP.
    assert utilisation(tokens_per_s=1000, flops_a_token=78_000_000_000, num_gpus=2, peak=312e12) == 0.125
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA L40S") == 362e12 and peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("a toaster") is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA L40", 181e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A1000 6GB Laptop GPU", None),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", None),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 30900", None),
    ],
)
def test_a_peak_is_that_of_the_very_chip(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_the_largest_micro_batch_fits_and_its_double_does_not() -> None:
    def memory_of(rows: int) -> Memory:
        return Memory(10, 10, 20, activations=7 * rows, loss=3 * rows, evaluation=0, update=0, fragments=0, program=0)

    assert largest_micro_batch(memory_of, most=64, limit=120) == 8
    assert largest_micro_batch(memory_of, most=6, limit=120) == 6
    assert largest_micro_batch(memory_of, most=64, limit=45) == 0


def save_sizes(corpus: Path, folder: Path, **sizes: Any) -> str:
    """Write a model of these sizes, with the tokenizer of the corpus, to train on from, and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    save_model(ScratchForCausalLM(ScratchConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, folder)
    return str(folder)


def without_sizes(words: list[str], changes: dict[str, Any]) -> list[str]:
    """Leave out the sizes that every test's run has, where it has those of another model."""
    if "init_from" not in changes:
        return words
    pairs = zip(words[::2], words[1::2], strict=True)
    left = ("--hidden_size", "--num_hidden_layers", "--num_attention_heads")
    return [word for pair in pairs if pair[0] not in left for word in pair]


def vocabulary(changes: dict[str, Any]) -> list[str]:
    return [] if "init_from" in changes else ["--vocab_size", "400"]


def test_recomputed_activations_take_less_memory_in_the_plan(tmp_path: Path) -> None:
    """What is kept of a layer is its input alone, and the activations of one layer at a time."""
    planned = {}
    for recomputed in ("true", "false"):
        sizes = "hidden_size: 64\nnum_attention_heads: 2\nnum_hidden_layers: 12\ncontext_length: 64\n"
        (tmp_path / "pretrain.yaml").write_text(f"{sizes}activation_checkpointing: {recomputed}\n")
        planned[recomputed] = memory_of(read_recipe(tmp_path, 400), rows=8, bf16=True)
    one, other = planned["true"], planned["false"]
    inputs = 12 * (8 * 64 * 64 * 4)
    assert inputs < one.activations < other.activations / 4 and one.activations - inputs < other.activations / 8
    assert (one.weights, one.gradients, one.optimizer) == (other.weights, other.gradients, other.optimizer)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "qwen3"])
def test_a_run_from_a_model_is_planned_with_that_model_s_sizes(
    corpus: Path, tmp_path: Path, stock: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = save_sizes(corpus, tmp_path / "model", **sizes, max_position_embeddings=256)
    if stock:
        config = stock_config(ScratchConfig.from_pretrained(model))
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / "stock")
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "stock")
        model = str(tmp_path / "stock")
    changes = {"init_from": model, "max_steps": 1, "context_length": 128, "batch_rows": 4, "precision": "fp32"}
    (tmp_path / "pretrain.yaml").write_text("".join(f"{key}: {value}\n" for key, value in changes.items()))
    gpu = ["--config", str(tmp_path), "--hardware", "l4-24gb"]
    plan(gpu)
    planned = re.search(r"parameters +([\d,]+), ([\d,]+) without embedding", capsys.readouterr().out)
    pretrain(without_sizes(arguments(corpus, tmp_path / "run", **changes), changes))
    trained = re.search(r"([\d,]+) parameters \(([\d,]+) without embedding\)", capsys.readouterr().out)
    assert planned and trained and planned.groups() == trained.groups()
    plan([*gpu, "--vocab_size", "400"])
    with pytest.raises(SystemExit, match="--vocab_size 500, but init_from=.* has 400 tokens; leave it out"):
        plan([*gpu, "--vocab_size", "500"])
    (tmp_path / "pretrain.yaml").write_text(f"init_from: {model}\nhidden_size: 64\n")
    with pytest.raises(SystemExit, match="hidden_size is set, but init_from=.* has its own"):
        plan(gpu)


def test_a_sharded_gradient_is_whole_only_where_that_takes_little_of_the_memory(tiny_config: ScratchConfig) -> None:
    assert keeps_whole_gradient(parameters=2_000_000_000, memory=80e9)
    assert not keeps_whole_gradient(parameters=2_100_000_000, memory=80e9)
    sizes = (tiny_config, 1, 32, "adamw", True)
    whole, part = (training_memory(*sizes, shards=4, whole_gradient=kept) for kept in (True, False))
    assert whole.gradients - part.gradients == 4 * count_parameters(tiny_config)[0] == 4 * part.gradients
    assert whole.weights == part.weights


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [{}, {"optimizer": "muon"}, {"init_from": "model"}],
    ids=["adamw", "muon", "init_from"],
)
def test_the_memory_of_a_run_is_within_15_percent_of_the_plan(
    corpus: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Peak resident memory of real processes: the plan's, and the run's with the same recipe."""
    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    changes: dict[str, Any] = {
        "batch_rows": 48, "micro_batch_size": 48, "max_steps": 2, "log_steps": 2, "eval_steps": 2, "save_steps": 2,
        "precision": "fp32",
    } | more  # fmt: skip
    if "init_from" in more:
        changes["init_from"] = save_sizes(corpus, tmp_path / "model", **sizes)
    else:
        changes |= sizes
    words = arguments(corpus, tmp_path / "run", **changes)
    command = [sys.executable, "-m", "training.pretrain", *without_sizes(words, changes)]
    process = subprocess.Popen(command, env=one_thread())
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    recipe = "".join(f"{key}: {value}\n" for key, value in ({"context_length": 128} | changes).items())
    (tmp_path / "pretrain.yaml").write_text(recipe)
    shown = subprocess.run(
        [sys.executable, "-m", "training.plan", "--config", str(tmp_path), *vocabulary(changes)],
        env=one_thread(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    planned = float(re.search(r"48 rows at once fit into .*: ([\d.]+) GB", shown)[1])  # type: ignore[index]
    assert planned == pytest.approx(usage.ru_maxrss * 1024 / 1e9, rel=0.15), shown


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_size_of_its_name(name: str) -> None:
    number, unit = re.fullmatch(r".*-(\d+)([mb])", name).groups()  # type: ignore[union-attr]
    recipe = read_recipe(RECIPES / name)
    total, without_embedding = count_parameters(recipe.model)
    assert total == pytest.approx(int(number) * {"m": 1e6, "b": 1e9}[unit], rel=0.05)
    assert recipe.tokens == pytest.approx(20 * total, rel=0.1)
    comment = (RECIPES / name / "pretrain.yaml").read_text()
    for figure in (total, without_embedding, recipe.tokens):
        assert f"{figure:,}" in comment
    assert re.findall(r"training/launch/\S+\.yaml", comment)


def test_the_presets_are_there() -> None:
    assert PRESETS == ["fineweb-124m", "fineweb-1b", "fineweb-350m", "tinystories-15m"]


def test_the_plan_says_what_gpus_will_need(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(RECIPES / "quickstart"), "--hardware", "a100-80gb", "--gpus", "2", "--price", "2.5"]
    plan(words)
    shown = capsys.readouterr().out
    assert "parameters   981,376, 853,376 without embedding" in shown  # the vocabulary counts, too
    for line in ("parameters ", "operations ", "suggested ", "DDP ", "FSDP2 ", "time "):
        assert f"\n{line}" in "\n" + shown
    assert "dollars" in shown and "weights" in shown


@pytest.mark.parametrize("native", [True, False])
def test_the_plan_says_in_which_precision_this_machine_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], native: bool
) -> None:
    """Both are measured where bfloat16 is native, also if the recipe has settled on one of them."""
    monkeypatch.setattr(hardware, "_has_native_bf16", lambda: native)
    sizes = "hidden_size: 32\nnum_hidden_layers: 1\nnum_attention_heads: 2\ncontext_length: 64\nbatch_rows: 2\n"
    for setting, start in (
        ("auto", f"auto is {'bf16' if native else 'fp32'} here; "),
        ("fp32", "fp32, as the recipe"),
    ):
        (tmp_path / "pretrain.yaml").write_text(f"{sizes}precision: {setting}\n")
        plan(["--config", str(tmp_path), "--vocab_size", "400"])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("precision "))
        assert line.removeprefix("precision    ").startswith(start)
        other = "fp32" if setting == "auto" else "bf16"
        assert bool(re.search(rf"{other} is [\d.]+ times as fast", line)) == native
        assert native or line.endswith("bf16 would be emulated")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere"], "cannot be read"),
        (["--config", str(RECIPES / "quickstart"), "--gpus", "0"], "must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        plan(words)
