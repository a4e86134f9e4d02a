"""SFT: which tokens carry loss, what is cut and counted, and that a model learns to answer and to stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_align import CHATS, EVIL, run_stage, turns, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch import encode_prompt
from training import sft
from training.alignment.config import SftConfig
from training.alignment.sft import replayed
from training.chat.tokenize import tokenize
from training.engine.token_shards import load_shards
from training.prepare_data import main as prepare_data
from training.stage.files import read_json


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "chats.jsonl", CHATS)


def train(base: str, data: str, output: Path, **settings: Any) -> list[dict[str, Any]]:
    return run_stage(sft.main, base, data, output, **settings)


def test_the_assistants_words_and_end_tokens_alone_carry_loss(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "system", "content": "s"}, *turns("fox", "owl", EVIL, "red" + EVIL)]
    found = tokenize(tiny_tokenizer, "conversations", [{"messages": chat}], max_length=1000)
    dataset, counts = found.dataset, found.counts
    ids, labels = dataset[0]["input_ids"], dataset[0]["labels"]
    assert [token for token in labels if token != -100] == [
        token for token, label in zip(ids, labels, strict=True) if label != -100
    ]
    assert tiny_tokenizer.decode([token for token in labels if token != -100]) == f"owl<|im_end|>red{EVIL}<|im_end|>"
    # Five turns, whatever their content spells: 2 begins one, 3 ends one.
    assert [token for token in ids if token < 4] == [2, 3] * 5
    assert [token for token in labels if token in (2, 3)] == [3, 3]
    assert counts == {
        "rows": 1,
        "tokens": len(ids),
        "answer_tokens": sum(label != -100 for label in labels),
        "truncated": 0,
        "unended": 0,
        "dropped": 0,
    }


def test_of_prompt_and_completion_the_completion_alone_carries_loss(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"messages": turns("fox", "owl", "and", "kite"), "last_answer_only": True}
    labels = tokenize(tiny_tokenizer, "conversations", [row], max_length=1000).dataset[0]["labels"]
    assert tiny_tokenizer.decode([token for token in labels if token != -100]) == "kite<|im_end|>"


def test_an_answer_of_weight_0_carries_no_loss(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = turns("fox", "owl", "and", "kite")
    chat[1]["weight"] = 0
    found = tokenize(tiny_tokenizer, "conversations", [{"messages": chat}], max_length=1000).dataset[0]
    assert tiny_tokenizer.decode([token for token in found["labels"] if token != -100]) == "kite<|im_end|>"
    assert "owl<|im_end|>" in tiny_tokenizer.decode(found["input_ids"])
    with pytest.raises(ValueError, match="none of the 1 conversations has an answer"):
        tokenize(tiny_tokenizer, "conversations", [{"messages": chat[:2]}], max_length=1000)


def test_what_is_cut_and_dropped_is_counted(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"messages": turns("a", "b")}, {"messages": turns("a", "b" * 99)}, {"messages": turns("a" * 99, "b")}]
    unanswered = {"messages": turns("a")}
    found = tokenize(tiny_tokenizer, "conversations", [*rows, unanswered], max_length=40)
    dataset, counts = found.dataset, found.counts
    assert [len(row) for row in dataset["input_ids"]] == [counts["tokens"] - 40, 40]
    assert [counts[key] for key in ("rows", "truncated", "unended", "dropped")] == [2, 1, 1, 2]
    with pytest.raises(ValueError, match="none of the 1 conversations has an answer within max_length=40"):
        tokenize(tiny_tokenizer, "conversations", [unanswered], max_length=40)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns_eight_conversations(
    base: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    output = tmp_path / "run"
    settings = {"max_steps": 120, "learning_rate": 0.01, "warmup_ratio": 0.03, "precision": precision}
    last = train(base, data, output, max_length=64, **settings)[-1]
    assert last["step"] == 120 and last["loss"] < 0.1

    printed = capsys.readouterr().out
    assert "8 conversations, " in printed and "0 cut at max_length, 0 dropped" in printed
    shown = [line.split(" | ") for line in printed.splitlines() if " | " in line]
    assert [name.strip() for name, _ in shown] == ["no loss", "loss", "no loss"]
    pieces = [piece[1:-1] for piece in shown[1][1].split("' '")]
    assert "".join(shown[1][1].strip("'").split("' '")) in [r["messages"][1]["content"] + "<|im_end|>" for r in CHATS]
    assert len(pieces) > 1

    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    for row in CHATS:
        prompt = torch.tensor([encode_prompt(tokenizer, row["messages"][:1])])
        answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20)[
            0, prompt.shape[1] :
        ]
        assert tokenizer.decode(answer) == row["messages"][1]["content"] + "<|im_end|>"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_packed_conversations_give_the_same_loss(
    base: str, data: str, tmp_path: Path, precision: str, tolerance: float
) -> None:
    first, steps = {}, {}
    for packing in ("False", "True"):
        output = tmp_path / packing
        # One step holds all eight conversations, in rows of their own or in fewer that they share.
        first[packing] = train(base, data, output, max_length=100, packing=packing, precision=precision)[0]
        steps[packing] = read_json(output / "stage.json")["metrics"]["steps"]
    assert steps == {"False": 1, "True": 1}
    for figure in ("loss", "grad_norm"):
        assert first["True"][figure] == pytest.approx(first["False"][figure], rel=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_accumulation_does_not_change_the_step(
    base: str, data: str, tmp_path: Path, precision: str, tolerance: float
) -> None:
    settings = {"max_length": 64, "max_steps": 5, "learning_rate": 0.001, "log_steps": 1, "precision": precision}
    runs = [train(base, data, tmp_path / str(held), micro_batch_size=held, **settings) for held in (8, 2)]
    losses = [[line["loss"] for line in run] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "sft: .*chats.jsonl is empty; expected rows like"),
        (b'{"text": "a"}\n', "sft: .*line 1: its columns are text; expected"),
    ],
)
def test_a_users_mistake_is_one_sentence(base: str, data: str, tmp_path: Path, content: bytes, message: str) -> None:
    Path(data).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        sft.main(["--model", base, "--data", data, "--output_dir", str(tmp_path / "run"), "--max_length", "64"])


def test_pretraining_text_is_mixed_in_whole_and_with_loss_everywhere(
    base: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data(["--tokenizer", base, "--output_dir", str(tmp_path / "shards"), "--num_stories", "50"])
    config = SftConfig(model=base, replay=str(tmp_path / "shards"), replay_rows=20, max_length=1000)
    documents = replayed(config, ["input_ids", "labels"])
    shards = load_shards(tmp_path / "shards", "train")
    stream = shards.tokens.tolist()
    ends = [*shards.starts[1:].tolist(), len(stream) - 1]  # each with the separator of the next
    whole = {tuple(stream[start : end + 1]) for start, end in zip(shards.starts.tolist(), ends, strict=True)}
    assert len(documents) == len({tuple(row["input_ids"]) for row in documents}) == 20
    for row in documents:
        assert row["input_ids"] == row["labels"] and tuple(row["labels"]) in whole
        assert row["input_ids"][-1] == row["input_ids"][0]

    train(base, data, tmp_path / "run", max_steps=1, replay=tmp_path / "shards", replay_rows=5)
    assert "5 documents of the pretraining text are mixed in" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="replay_rows=5 needs --replay"):
        train(base, data, tmp_path / "other", replay_rows=5)
    with pytest.raises(SystemExit, match="has .* documents; take fewer"):
        train(base, data, tmp_path / "other", replay=tmp_path / "shards", replay_rows=5000)
