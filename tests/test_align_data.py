"""One script, any model, any shape of data: SFT and DPO on our model and on stock ones; KTO; too little memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_align import CHATS, PAIRS, THUMBS, run_stage, write_jsonl
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_scratch.tokenizer import CHAT_TEMPLATE
from training import dpo, sft
from training.alignment import stage as align

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
STOCK = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)),
}
ASKED, SAID, UNSAID = "Who has the kite?", "The red fox.", "No one."


def hh(answer: str) -> str:
    return f"\n\nHuman: {ASKED}\n\nAssistant: {answer}"


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": ASKED}, {"role": "assistant", "content": answer}]


SHAPES = {
    "messages": (sft, {"messages": chat(SAID)}),
    "prompt and completion": (sft, {"prompt": ASKED, "completion": SAID}),
    "Alpaca": (sft, {"instruction": ASKED, "input": "", "output": SAID}),
    "ShareGPT": (sft, {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]}),
    "prompt, chosen and rejected": (dpo, {"prompt": ASKED, "chosen": SAID, "rejected": UNSAID}),
    "chats": (dpo, {"chosen": chat(SAID), "rejected": chat(UNSAID)}),
    "HH-RLHF": (dpo, {"chosen": hh(SAID), "rejected": hh(UNSAID)}),
    "thumbs": (dpo, {"prompt": ASKED, "completion": SAID, "label": True}),
}


@pytest.fixture
def stock(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, base: str) -> str:
    """Folder of our model, or of a stock one whose template has no marks for the assistant's words."""
    if request.param == "ours":
        return base
    folder = tmp_path / request.param
    STOCK[request.param]().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    unmarked = CHAT_TEMPLATE.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    (folder / "chat_template.jinja").write_text(unmarked)
    return str(folder)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stock", ["ours", "llama", pytest.param("qwen3", marks=pytest.mark.slow)], indirect=True)
def test_any_shape_trains_any_model(stock: str, shape: str, tmp_path: Path) -> None:
    stage, row = SHAPES[shape]
    rows = [row, row | {"label": False}] * 2 if shape == "thumbs" else [row] * 4
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = run_stage(stage.main, stock, data, tmp_path / "run", batch_size=4, max_steps=2, learning_rate=0.01)
    assert len(lines) == 2 and all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (stock, tmp_path / "run" / "model"))
    assert type(before) is type(after)
    weights = dict(before.named_parameters())
    assert not any(torch.equal(weight, weights[name]) for name, weight in after.named_parameters())


def test_thumbs_raise_what_was_liked(base: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "thumbs.jsonl", THUMBS)
    lines = run_stage(dpo.main, base, data, tmp_path / "run", max_steps=30, learning_rate=0.003)
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-4)  # sigmoid(0) on each side, as model and reference agree
    assert lines[-1]["rewards/chosen"] > 0 > lines[-1]["rewards/rejected"] and lines[-1]["rewards/margins"] > 0.5
    assert lines[-1]["kl"] is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ipo"}, "dpo: this data has thumbs and no pairs, so it is trained on with KTO"),
        ({"micro_batch_size": 1}, "dpo: KTO estimates a KL over the rows that are held at once"),
    ],
)
def test_settings_of_pairs_do_not_fit_thumbs(base: str, tmp_path: Path, settings: Any, message: str) -> None:
    data = write_jsonl(tmp_path / "thumbs.jsonl", THUMBS)
    with pytest.raises(SystemExit, match=message):
        run_stage(dpo.main, base, data, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("stage", "row", "settings", "message"),
    [
        (
            dpo,
            {"prompt": chat(SAID)[1:], "chosen": chat(SAID)[:1], "rejected": chat(UNSAID)[1:]},
            [],
            "dpo: .*line 1: its prompt is what an assistant says and its chosen what a user says: are columns swapped",
        ),
        (
            sft,
            {"prompt": chat(SAID)[1:], "completion": chat(SAID)[:1]},
            [],
            "sft: .*line 1: its prompt begins with the assistant",
        ),
        (
            sft,
            {"messages": [{"role": "usr", "content": ASKED}, chat(SAID)[1]]},
            [],
            "sft: .*line 1: message 1 of its messages has the role 'usr', not one of system, user, assistant",
        ),
        (
            sft,
            {"messages": chat(SAID)},
            ["--max_length", "20"],
            "sft: none of the 4 conversations has an answer within max_length=20 tokens",
        ),
        (
            dpo,
            {"prompt": ASKED, "chosen": SAID, "rejected": UNSAID},
            ["--max_length", "20"],
            "dpo: the prompts of all 4 pairs fill max_length=20 tokens",
        ),
        (
            sft,
            {"messages": chat(SAID)},
            ["--eval_examples", "4"],
            "sft: .* has 4 rows, so eval_examples=4 leaves none to train on",
        ),
    ],
)
def test_data_that_cannot_be_used_is_one_sentence(
    base: str, stage: Any, row: Any, settings: list[str], message: str, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [row] * 4)
    with pytest.raises(SystemExit, match=message):
        stage.main(["--model", base, "--data", data, "--inspect", *settings])


# ---- memory ----


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let every model that a stage loads run out of memory when it trains on more rows than these."""
    load = align.load_weights

    def loaded(path: str, **kwargs: Any) -> Any:
        model = load(path, **kwargs)

        def refuse(module: Any, args: Any, kwargs: Any) -> None:
            if len(kwargs["input_ids"]) > rows and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

        model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
        return model

    monkeypatch.setattr(align, "load_weights", loaded)


@pytest.mark.parametrize(
    ("stage", "rows", "limit", "precision"),
    [(sft, CHATS, 3, "fp32"), (dpo, PAIRS, 5, "fp32"), (dpo, THUMBS, 5, "fp32"), (dpo, PAIRS, 5, "bf16")],
)
def test_out_of_memory_takes_smaller_pieces_of_the_same_steps(
    stage: Any,
    rows: list[Any],
    limit: int,
    precision: str,
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"max_steps": 4, "learning_rate": 0.001, "log_steps": 1, "precision": precision}
    roomy = run_stage(stage.main, base, data, tmp_path / "roomy", **settings)
    short_of_memory(monkeypatch, limit)
    tight = run_stage(stage.main, base, data, tmp_path / "tight", **settings)
    assert "memory ran out with 8 rows at once; now 4" in "".join(capfd.readouterr())
    if rows is THUMBS:  # whose KL is estimated over the rows that are held at once
        assert len(tight) == len(roomy)
        return
    for line, other in zip(tight, roomy, strict=True):
        for figure in ("loss", "grad_norm"):
            assert line[figure] == pytest.approx(other[figure], rel=1e-4 if precision == "fp32" else 2e-2)
    if precision == "bf16":  # Adam makes a step of the size of the learning rate out of any rounding
        return
    weights, others = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("tight", "roomy"))
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


def test_a_row_that_does_not_fit_is_a_sentence(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(SystemExit, match="sft: memory ran out with a single row at once; lower max_length"):
        run_stage(sft.main, base, write_jsonl(tmp_path / "rows.jsonl", CHATS), tmp_path / "run")


def test_the_record_says_what_the_data_was(base: str, tmp_path: Path) -> None:
    run_stage(dpo.main, base, write_jsonl(tmp_path / "rows.jsonl", THUMBS), tmp_path / "run", max_steps=1)
    record = json.loads((tmp_path / "run" / "stage.json").read_text())
    found = {line["what"]: line["found"] for line in record["data"]}
    assert found["format"] == "prompt, completion and thumb" and found["thumbs up"] == "8 of 16"
