"""Training goes on from a model that exists, ours or a stock Qwen3, and says what old and new text cost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import arguments, corpus, metrics
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from training.prepare_data import main as prepare_data
from training.pretrain import main as pretrain
from training.train_tokenizer import main as train_tokenizer

__all__ = ["corpus"]  # a fixture that is used here too

NEW = "The kettle sang on the stove while rain fell on the harbour and the boats came home. "


@pytest.fixture(scope="module")
def new(corpus: Path) -> Path:
    """Data of another kind, by the same tokenizer."""
    text = corpus / "new.txt"
    text.write_text("\n\n".join(f"{number}. {NEW * 6}" for number in range(60)))
    prepare_data(
        ["--output_dir", f"{corpus}/new", "--tokenizer", f"{corpus}/tokenizer", "--files", str(text)]
        + ["--val_fraction", "0.2"]
    )
    return corpus / "new"


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pretrain(arguments(corpus, folder, max_steps=30, eval_steps=30))
    return folder / "model"


def going_on(corpus: Path, folder: Path, model: Path, *data: str, **changes: Any) -> list[str]:
    """The arguments of a run from a model, which has the sizes."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    given = arguments(corpus, folder, **{"init_from": model, "max_steps": 6, "eval_steps": 6} | changes)
    for name in sizes:
        at = given.index(f"--{name}")
        del given[at : at + 2]
    at = given.index("--data")
    given[at + 1 : at + 2] = data or (str(corpus / "data"),)
    return given


@pytest.mark.slow
def test_it_goes_on_with_the_weights_and_reports_old_and_new_text(
    corpus: Path, base: Path, new: Path, tmp_path: Path
) -> None:
    old = str(corpus / "data")
    pretrain(
        going_on(corpus, tmp_path, base, str(new), f"{old}=0.2", log_steps=1, learning_rate=0.003, warmup_steps=3)
    )
    lines = metrics(tmp_path)
    assert lines[0]["lr"] == pytest.approx(0.001), "the rate is warmed up again"
    by_data = json.loads((tmp_path / "stage.json").read_text())["metrics"]["by_data"]
    assert by_data.keys() == {str(new), old}
    known = json.loads((base.parent / "stage.json").read_text())["metrics"]["val_bpb"]
    assert by_data[old]["val_bpb_before"] == pytest.approx(known, rel=0.01)  # another sample of the same text
    assert by_data[str(new)]["val_bpb"] < by_data[str(new)]["val_bpb_before"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.hidden_size == 32


@pytest.mark.slow
def test_a_stock_qwen3_is_taken_as_ours(corpus: Path, base: Path, tmp_path: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(base)
    given = {key: value for key, value in ours.config.to_dict().items() if key not in ("model_type", "auto_map")}
    stock = Qwen3ForCausalLM(Qwen3Config(**given))
    stock.load_state_dict(ours.state_dict())
    shutil.copytree(base, tmp_path / "stock", ignore=shutil.ignore_patterns("*.safetensors", "config.json", "*.py"))
    stock.save_pretrained(tmp_path / "stock")
    for name, model in (("a", base), ("b", tmp_path / "stock")):
        pretrain(going_on(corpus, tmp_path / name, model, max_steps=2, warmup_steps=0))
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in "ab")
    assert type(other) is type(one)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_what_contradicts_the_model_is_refused_in_a_sentence(corpus: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="hidden_size is set, but init_from=.* has its own; leave hidden_size out"):
        pretrain(arguments(corpus, tmp_path / "sizes", init_from=base))
    with pytest.raises(SystemExit, match="rows of 256 tokens are longer than the 128 that init_from"):
        pretrain(going_on(corpus, tmp_path / "long", base, context_length=256))
    train_tokenizer(["--output_dir", f"{tmp_path}/tokenizer", "--vocab_size", "350", "--num_stories", "60"])
    prepare_data(["--output_dir", f"{tmp_path}/data", "--tokenizer", f"{tmp_path}/tokenizer", "--num_stories", "60"])
    with pytest.raises(SystemExit, match="is not that of init_from=.*prepare the data with --tokenizer"):
        pretrain(going_on(tmp_path, tmp_path / "tokens", base))


def test_a_run_that_begins_anew_has_the_fingerprint_that_it_had(corpus: Path, tmp_path: Path) -> None:
    """Settings without effect on it (`init_from` unset, the profiler) do not make it another run."""
    pretrain(arguments(corpus, tmp_path, max_steps=8))
    record = json.loads((tmp_path / "stage.json").read_text())
    assert "init_from" not in record["config"] and "init_from" not in record["inputs"]
    assert not {"profile_steps", "attn_implementation", "activation_checkpointing"} & record["config"].keys()


@pytest.mark.slow
def test_a_trace_of_some_steps_is_written_and_recomputed_activations_change_nothing(
    corpus: Path, tmp_path: Path
) -> None:
    pretrain(arguments(corpus, tmp_path / "plain", max_steps=6))
    pretrain(arguments(corpus, tmp_path / "run", max_steps=6, profile_steps=2, activation_checkpointing="true"))
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("plain", "run"))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
