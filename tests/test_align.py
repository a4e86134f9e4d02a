"""What SFT and DPO share: the model they start from, the order of rows, guards, resuming and what is written."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from hf_scratch.tokenizer import CHAT_TEMPLATE
from training import dpo, prepare_chat, prepare_data, release, sft, train_tokenizer
from training.alignment import trainer as align_trainer
from training.alignment.config import AlignConfig, DpoConfig, GrpoConfig, SftConfig
from training.alignment.stage import load_model, load_weights
from training.alignment.trainer import last_checkpoint, row_order, training_arguments
from training.engine.config import PretrainConfig
from training.engine.device import resolve_precision
from training.engine.save import save_model
from training.evaluation.config import EvalConfig
from training.stage.config import parse_config
from training.stage.files import read_json

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "training" / "recipes"
STAGES = {"sft": sft, "dpo": dpo}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Eight rows for each stage."""
    rows: dict[str, list] = {"sft": [], "dpo": []}
    for i in range(8):
        prompt = {"role": "user", "content": f"kite {i}"}
        said, unsaid = ({"role": "assistant", "content": text} for text in (f"red fox {i}", f"sad owl {i}"))
        rows["sft"].append({"messages": [prompt, said]})
        rows["dpo"].append({"prompt": [prompt], "chosen": [said], "rejected": [unsaid]})
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


def arguments(base: str, data: str, output: Path, **settings: Any) -> list[str]:
    common = {"max_length": 64, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.003, "log_steps": 2}
    options = {"model": base, "data": data, "output_dir": output, **common, **settings}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def config(base: str, **settings: Any) -> AlignConfig:
    return AlignConfig(model=base, output_dir="runs/x", **{"max_length": 64, **settings})


# ---- recipes ----


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_settings_of_every_recipe_exist(path: Path) -> None:
    """The settings of each stage, with what the pipeline gives it besides."""
    stages: dict[str, tuple[Any, str]] = {
        "tokenizer": (train_tokenizer.TokenizerConfig, ""),
        "data": (prepare_data.DataConfig, "--tokenizer t"),
        "chat": (prepare_chat.ChatConfig, "--data d --tokenizer t"),
        "pretrain": (PretrainConfig, "--data d --tokenizer t"),
        "sft": (SftConfig, "--model m"),
        "dpo": (DpoConfig, "--model m"),
        "grpo": (GrpoConfig, "--model m"),
        "eval": (EvalConfig, "--models a=b"),
        "release": (release.ReleaseConfig, "--run r"),
    }
    config_class, inputs = stages[path.stem]
    parse_config(config_class, ["--config", str(path), "--output_dir", "runs/x", *inputs.split()])


# ---- what it starts from ----


def test_a_turn_ends_as_the_template_ends_it(base: str) -> None:
    model, tokenizer = load_model(base)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.dtype == torch.float32


def test_our_tokens_get_our_template(base: str) -> None:
    (Path(base) / "chat_template.jinja").unlink()
    assert load_model(base)[1].chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 129}, "max_length=129 is longer than the context of .*; use at most 128"),
        ({"model": "nobody/nothing"}, "nobody/nothing is not a model's folder, nor a Hub id"),
        ({"model": "runs/no/model"}, "there is no folder runs/no/model; check the path, or make the model first"),
        ({"model": "/nowhere/model"}, "there is no folder /nowhere/model; check the path"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(base: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(settings.pop("model", base), **settings)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_rows_are_as_long_as_the_model_takes(
    name: str, base: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--model", base, "--data", data[name], "--batch_size", "4", "--max_steps", "1"]
    STAGES[name].main([*line, "--output_dir", str(tmp_path / "run")])
    assert read_json(tmp_path / "run" / "stage.json")["config"]["max_length"] == 128
    capsys.readouterr()
    STAGES[name].main([*line, "--inspect"])
    assert "rows longer than max_length=128 " in capsys.readouterr().out


def test_a_model_without_chat_tokens_needs_a_template(base: str) -> None:
    (Path(base) / "chat_template.jinja").unlink()
    path = Path(base) / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|other|>"))
    settings = Path(base) / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|im_start|>", "<|other|>"))
    with pytest.raises(ValueError, match="has no chat template, and not the tokens"):
        load_model(base)


def test_a_batch_must_be_a_multiple_of_what_is_held_at_once(base: str) -> None:
    with pytest.raises(ValueError, match="batch_size=32 is not a multiple of micro_batch_size=5 times 1 processes"):
        training_arguments(config(base, micro_batch_size=5))


@pytest.mark.parametrize("trl_config", [trl.SFTConfig, trl.DPOConfig])
def test_the_defaults_of_trl_that_hurt_are_set(base: str, trl_config: type) -> None:
    args = trl_config(**training_arguments(config(base)))
    assert args.bf16 == (resolve_precision("auto") == "bf16") and args.use_cpu == (not torch.cuda.is_available())
    assert args.activation_checkpointing is False and args.gradient_checkpointing is False
    assert args.neftune_noise_alpha is None
    for precision in ("fp32", "bf16"):
        assert trl_config(**training_arguments(config(base, precision=precision))).bf16 == (precision == "bf16")
    assert (
        trl_config(**training_arguments(config(base, activation_checkpointing=True))).activation_checkpointing is True
    )


# ---- the order of rows ----


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    num_rows=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_row_is_seen_equally_often(lengths: list[int], num_rows: int, batch_size: int, seed: int) -> None:
    order = row_order(np.array(lengths), num_rows, batch_size, seed)
    counts = np.bincount(order, minlength=len(lengths))
    assert counts.sum() == num_rows and counts.max() - counts.min() <= 1
    assert (order == row_order(np.array(lengths), num_rows, batch_size, seed)).all()


def test_rows_of_a_batch_are_alike_and_batches_are_mixed() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 3200)
    batches = lengths[row_order(lengths, 3200, 32, seed=0)].reshape(-1, 32)
    assert batches.max(axis=1).sum() * 32 < 1.05 * lengths.sum()
    assert abs(np.corrcoef(batches[:-1].mean(axis=1), batches[1:].mean(axis=1))[0, 1]) < 0.3


# ---- what comes out ----


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_what_a_run_leaves(name: str, base: str, data: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    line = arguments(base, data[name], output, epochs=2.5, eval_examples=2, eval_steps=2, save_steps=2)
    STAGES[name].main(line)
    assert sorted(path.name for path in output.iterdir()) == ["metrics.jsonl", "model", "stage.json"]

    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert isinstance(model, ScratchForCausalLM) and model.config.use_cache and model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [3, 0] and model.generation_config.pad_token_id == 1
    assert model.generation_config.do_sample is False
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("<|im_end|>", "left")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert {path.name for path in (output / "model").glob("*.py")} == {
        "configuration_scratch.py",
        "modeling_scratch.py",
    }

    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    # 6 rows, 2.5 epochs, batches of 4; each evaluation has its line, and the last step is logged whatever its number.
    assert [entry["step"] for entry in lines if entry["loss"] is not None] == [1, 2, 4]
    assert [entry["step"] for entry in lines if entry["eval_loss"] is not None][0] == 2
    assert lines[-1]["eval_loss"] is not None and lines[-1]["epoch"] == pytest.approx(16 / 6, abs=1e-3)
    assert all(entry.keys() >= {"step", "epoch", "loss", "eval_loss", "lr", "grad_norm"} for entry in lines)
    metrics = read_json(output / "stage.json")["metrics"]
    assert (metrics["rows"], metrics["truncated"], metrics["dropped"], metrics["steps"]) == (6, 0, 0, 4)

    capsys.readouterr()
    STAGES[name].main(line)
    assert "nothing has changed, skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_stock_model_is_trained_as_ours(
    name: str,
    data: dict[str, str],
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    llama.save_pretrained(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(tiny_tokenizer, tmp_path / "llama"))
    assert tokenizer.chat_template is None and tokenizer.pad_token is None
    STAGES[name].main(arguments(str(tmp_path / "llama"), data[name], tmp_path / "run", max_steps=2))
    assert "the tokenizer has no padding token; <|im_end|> pads" in capsys.readouterr().out
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(trained, LlamaForCausalLM) and trained.generation_config.eos_token_id == [3, 0]
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template == CHAT_TEMPLATE


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> Path:
    """Save a tokenizer as a stock base model has it: no template, no padding token."""
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").unlink()
    settings = json.loads((path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_a_loss_that_is_not_finite_stops_the_run(base: str, data: dict[str, str], tmp_path: Path) -> None:
    line = arguments(base, data["sft"], tmp_path / "run", max_steps=20, log_steps=1, learning_rate=1e30)
    with pytest.raises(SystemExit, match="the loss is nan at step .*; lower learning_rate=1e\\+30"):
        sft.main(line)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_lora_trains_an_adapter_and_merges_it(name: str, base: str, data: dict[str, str], tmp_path: Path) -> None:
    from peft import PeftModel

    STAGES[name].main(arguments(base, data[name], tmp_path / "run", epochs=10, tune="lora"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    untrained = AutoModelForCausalLM.from_pretrained(base)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run" / "adapter")
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter").chat_template == CHAT_TEMPLATE
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(untrained(ids).logits, merged(ids).logits, atol=1e-2)
    assert torch.equal(untrained.get_input_embeddings().weight, merged.get_input_embeddings().weight)
    # Wherever it is loaded from, the base is found.
    assert read_json(tmp_path / "run" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_qlora_trains_an_adapter_on_4_bits(
    name: str, make_model: Any, tiny_tokenizer: PreTrainedTokenizerBase, data: dict[str, str], tmp_path: Path
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install 'hf_scratch[qlora]'")
    from peft import PeftModel

    # On a processor with AVX512-BF16, bitsandbytes packs matrices of 32 n rows and 64 n columns, and no others.
    base = str(tmp_path / "base")
    model = make_model(initializer_range=0.05, hidden_size=64, head_dim=16)
    save_model(model, tiny_tokenizer, Path(base))
    weights, rounded = load_weights(base), load_weights(base, quantized=True)
    layers = [type(layer) for path, layer in rounded.named_modules() if path.endswith("_proj")]
    assert layers and set(layers) == {bitsandbytes.nn.Linear4bit}
    STAGES[name].main(arguments(base, data[name], tmp_path / "run", epochs=10, tune="qlora"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        untrained, rough = weights(ids).logits, rounded(ids).logits
        adapted = PeftModel.from_pretrained(weights, tmp_path / "run" / "adapter")(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(rough, untrained) and (rough - untrained).abs().mean() < untrained.std()
    assert not torch.allclose(untrained, adapted, atol=1e-2)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_qlora_says_what_it_needs(base: str, data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="dpo: --tune qlora needs bitsandbytes; pip install 'hf_scratch.qlora.'"):
        dpo.main(arguments(base, data["dpo"], tmp_path / "run", tune="qlora"))


# ---- several processes ----


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("sft", "fp32"), ("dpo", "fp32"), ("sft", "bf16")])
def test_two_processes_take_the_steps_of_one(
    name: str, precision: str, base: str, data: dict[str, str], tmp_path: Path
) -> None:
    settings = {"max_steps": 4, "micro_batch_size": 1, "log_steps": 1, "precision": precision}
    STAGES[name].main(arguments(base, data[name], tmp_path / "one", **settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "training" / "launch" / "cpu-2.yaml"), "-m", f"training.{name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, *arguments(base, data[name], tmp_path / "two", **settings)], cwd=ROOT, env=environment, check=True
    )
    for line, expected in zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True):
        loose = 1 if precision == "fp32" else 20
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4 * loose)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3 * loose)
    if precision == "bf16":  # Adam makes a step of the size of the learning rate out of any rounding
        return
    weights, expected_weights = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("two", "one"))
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[key], rtol=1e-3, atol=1e-4)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---- resuming ----


def test_a_checkpoint_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text('{"global_step": 9}')
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10}')
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-100").exists()


KILLED = """
import os, signal, sys
from training import {name}
from training.alignment import trainer as align_trainer

class Killing(align_trainer.MetricsLog):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 15:
            os.kill(os.getpid(), signal.SIGKILL)

align_trainer.MetricsLog = Killing
{name}.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("sft", "fp32"), ("dpo", "bf16")])
def test_killed_and_started_again_it_ends_where_it_would_have(
    name: str, precision: str, base: str, data: dict[str, str], tmp_path: Path
) -> None:
    settings = {"max_steps": 30, "save_steps": 10, "learning_rate": 0.0003, "precision": precision}
    how = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    # In a process of its own, too: oneDNN's choice of kernels for an emulated bfloat16 depends on what ran before.
    whole = arguments(base, data[name], tmp_path / "undisturbed", **settings)
    subprocess.run([sys.executable, "-m", f"training.{name}", *whole], **how, check=True)

    output = tmp_path / "killed"
    words = arguments(base, data[name], output, **settings)
    killed = subprocess.run([sys.executable, "-c", KILLED.format(name=name), *words], **how)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output / "model").exists()
    again = subprocess.run([sys.executable, "-m", f"training.{name}", *words], **how)
    assert again.returncode == 0, again.stderr
    assert "goes on from step 10" in again.stdout
    assert "custom code" not in again.stdout + again.stderr  # our own class needs none, and nobody is asked

    weights, undisturbed = (
        load_file(path / "model" / "model.safetensors") for path in (output, tmp_path / "undisturbed")
    )
    for key, value in undisturbed.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=0)
    assert (output / "metrics.jsonl").read_text() == (tmp_path / "undisturbed" / "metrics.jsonl").read_text()


def test_how_it_is_logged_saved_and_cut_may_change_in_the_middle(
    base: str,
    data: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"max_steps": 6, "save_steps": 2, "precision": "fp32", "eval_examples": 2}
    sft.main(arguments(base, data["sft"], tmp_path / "whole", **settings, log_steps=1, micro_batch_size=4))
    step_end = align_trainer.MetricsLog.on_step_end

    def stopped(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        patch.setattr(align_trainer.MetricsLog, "on_step_end", stopped)
        sft.main(arguments(base, data["sft"], tmp_path / "run", **settings, log_steps=5))
    changes = {
        "log_steps": 1,
        "save_steps": 3,
        "eval_steps": 3,
        "micro_batch_size": 1,
        "activation_checkpointing": True,
    }
    sft.main(arguments(base, data["sft"], tmp_path / "run", **settings | changes))
    assert "goes on from step 2" in capsys.readouterr().out and not (tmp_path / "run.previous").exists()
    lines, whole = ([x for x in metrics_of(tmp_path / run) if x["loss"] is not None] for run in ("run", "whole"))
    assert [line["step"] for line in lines] == [1, 3, 4, 5, 6]
    assert lines[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)
    assert [line["step"] for line in metrics_of(tmp_path / "run") if line["eval_loss"] is not None][0] == 3


@pytest.mark.parametrize("state", [None, "", '{"global_step": 2'])
def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path, state: str | None) -> None:
    for step, content in ((9, '{"global_step": 9}'), (10, state)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if content is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
