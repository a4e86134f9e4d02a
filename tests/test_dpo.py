"""DPO: what a pair becomes, the guard on the first loss, and that the model comes to prefer the chosen answers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from tiny_align import EVIL, PAIRS, pair, run_stage, write_jsonl
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from hf_scratch import encode_prompt
from training import dpo
from training.alignment import dpo as dpo_trainer
from training.alignment.config import DpoConfig
from training.alignment.stage import load_model
from training.alignment.trainer import training_arguments
from training.chat.tokenize import last_answer, tokenize


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


def train(base: str, data: str, output: Path, **settings: Any) -> list[dict[str, Any]]:
    return run_stage(dpo.main, base, data, output, **settings)


# ---- what a pair becomes ----


def test_answers_end_with_the_end_token_and_prompts_are_what_generation_sees(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    row = pair("fox", "owl", EVIL)
    row["prompt"] = [{"role": "system", "content": EVIL}, *row["prompt"], *row["chosen"], *row["prompt"]]
    found = tokenize(tiny_tokenizer, "preferences", [row], max_length=1000)
    ids, counts = found.dataset[0], found.counts
    assert ids["prompt_ids"] == encode_prompt(tiny_tokenizer, row["prompt"])
    assert tiny_tokenizer.decode(ids["chosen_ids"]) == "owl<|im_end|>"
    assert tiny_tokenizer.decode(ids["rejected_ids"]) == EVIL + "<|im_end|>"
    # Control tokens come from the template alone: 2 begins a turn, 3 ends one.
    assert [token for token in ids["prompt_ids"] if token < 4] == [2, 3] * 4 + [2]
    assert [token for token in ids["rejected_ids"] if token < 4] == [3]
    assert counts["tokens"] == 2 * len(ids["prompt_ids"]) + counts["answer_tokens"]
    assert counts["answer_tokens"] == len(ids["chosen_ids"]) + len(ids["rejected_ids"])


def test_an_answer_that_begins_with_a_line_break_keeps_one_prompt(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    # Byte-level BPE may learn a token of two line breaks, which joins the prompt's last one with the answer's first.
    row = tokenize(tiny_tokenizer, "preferences", [pair("fox", "\nowl", "owl")], max_length=1000).dataset[0]
    for side, text in (("chosen", "\nowl"), ("rejected", "owl")):
        whole = tiny_tokenizer.decode(row["prompt_ids"] + row[f"{side}_ids"])
        assert whole == f"<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"


@pytest.mark.parametrize(
    ("mask", "span"),
    [([0, 1, 1], (1, 3)), ([0, 1, 1, 0], (1, 3)), ([1, 0, 0, 1, 0], (3, 4)), ([1, 1], (0, 2))],
)
def test_the_last_answer_is_found(mask: list[int], span: tuple[int, int]) -> None:
    assert last_answer(mask) == span


def test_what_is_cut_and_dropped_is_counted(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [pair("a", "b", "c"), pair("a", "b", "c" * 99), pair("a" * 99, "b", "c")]
    found = tokenize(tiny_tokenizer, "preferences", rows, max_length=40)
    dataset, counts = found.dataset, found.counts
    assert (counts["rows"], counts["truncated"], counts["dropped"]) == (2, 1, 1)
    assert len(dataset[1]["prompt_ids"]) + len(dataset[1]["rejected_ids"]) == 40
    with pytest.raises(ValueError, match="the prompts of all 1 pairs fill max_length=40"):
        tokenize(tiny_tokenizer, "preferences", rows[2:], max_length=40)


# ---- training ----


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_first_loss_is_ln_2(base: str, data: str, tmp_path: Path, tune: str) -> None:
    first = train(base, data, tmp_path / "run", max_steps=2, learning_rate=0.01, tune=tune)[0]
    assert first["step"] == 1 and first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-5)


def test_every_way_to_the_reference_gives_the_same_steps(base: str, data: str, tmp_path: Path) -> None:
    steps = {}
    for tune, reference in (("full", "copy"), ("full", "precomputed"), ("lora", "auto"), ("lora", "copy")):
        settings = {"max_steps": 3, "learning_rate": 0.003, "log_steps": 1, "tune": tune, "reference": reference}
        lines = train(base, data, tmp_path / f"{tune}-{reference}", **settings)
        steps[tune, reference] = [line[key] for line in lines for key in ("loss", "grad_norm", "rewards/chosen")]
    assert steps["full", "precomputed"] == pytest.approx(steps["full", "copy"], rel=1e-4, abs=1e-6)
    assert steps["lora", "auto"] == pytest.approx(steps["lora", "copy"], rel=1e-4, abs=1e-6)


def test_the_kl_is_that_of_all_positions_at_once() -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 3 * dpo_trainer.KL_POSITIONS + 5, 40)
    expected = torch.nn.functional.kl_div(
        reference.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(dpo_trainer.sum_of_kl(logits, reference), expected)


def test_the_kl_takes_logits_of_answers_alone(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pair("a long question " * 5, "fox", f"no one {i}") for i in range(8)]
    shapes = []
    real = dpo_trainer.sum_of_kl
    monkeypatch.setattr(
        dpo_trainer, "sum_of_kl", lambda *logits: shapes.append(tuple(logits[0].shape)) or real(*logits)
    )
    lines = train(base, write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "run", max_steps=2, learning_rate=0.01)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5) and lines[-1]["kl"] > 0
    assert len(shapes) == 2 * 2 * dpo_trainer.KL_PAIRS and max(positions for positions, _ in shapes) < 12


def test_rounding_of_bfloat16_is_no_other_reference() -> None:
    # Log-probabilities that were written down with other padding: measured on a model of 6 layers in bfloat16.
    measured = {
        "rewards/chosen": -0.0028,
        "rewards/rejected": -0.0044,
        "logps/chosen": -779.4,
        "logps/rejected": -801.0,
    }
    dpo_trainer.check_first_loss(measured, beta=0.1, rounding=torch.finfo(torch.bfloat16).eps)
    with pytest.raises(ValueError, match="reference is another model"):
        dpo_trainer.check_first_loss(measured, beta=0.1)
    for reward in (2.0, -2.0, math.nan):  # 20 nats an answer
        with pytest.raises(ValueError, match="reference is another model"):
            dpo_trainer.check_first_loss(measured | {"rewards/rejected": reward}, 0.1, torch.finfo(torch.bfloat16).eps)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL's, as in the stage
def test_a_reference_that_is_not_the_model_stops_the_run_before_a_step(base: str, data: str, tmp_path: Path) -> None:
    config = DpoConfig(model=base, data=data, output_dir=str(tmp_path / "run"), max_length=96, batch_size=8)
    model, tokenizer = load_model(base)
    # What TRL does by itself: it loads the reference from the folder, whatever was done to the model since.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = dpo_trainer.CheckedDPOTrainer(
        model=model,
        ref_model=AutoModelForCausalLM.from_pretrained(base),
        args=trl.DPOConfig(**training_arguments(config), beta=0.1),
        train_dataset=tokenize(tokenizer, "preferences", PAIRS, 96).dataset,
        processing_class=tokenizer,
    )
    trainer.micro_batch_size = 8
    with pytest.raises(ValueError, match=r"the first DPO loss must be ln 2 = 0\.6931.*the reference is another model"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_it_comes_to_prefer_the_chosen_answers(
    base: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = train(base, data, tmp_path / "run", max_steps=30, learning_rate=0.003)
    assert lines[-1]["rewards/margins"] > 1 and lines[-1]["rewards/accuracies"] == 1
    assert lines[-1]["loss"] < 0.4 and lines[-1]["kl"] > lines[0]["kl"] + 0.01
    assert lines[-1]["length/chosen"] < lines[-1]["length/rejected"]
    printed = capsys.readouterr().out
    assert "8 pairs, " in printed and "0 cut at max_length, 0 dropped" in printed
    shown = dict(line.strip().split(" | ") for line in printed.splitlines() if " | " in line)
    assert shown.keys() == {"no loss", "loss"}
    assert "The first chosen as the model sees it:" in printed and "said the owl<|im_end|>" in printed


def test_the_sft_loss_keeps_the_chosen_answers_likely(base: str, data: str, tmp_path: Path) -> None:
    mixed = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}
    lines = train(base, data, tmp_path / "run", max_steps=30, learning_rate=0.003, **mixed)
    assert lines[-1]["logps/chosen"] > lines[0]["logps/chosen"] + 1
    assert lines[-1]["rewards/accuracies"] == 1


def test_chosen_answers_that_fall_with_the_rejected_ones_are_told(
    base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Answers that begin alike: to push the one's end down, the words that they share go down as well.
    alike = [
        pair(f"kite {i}", f"the little red fox said {i} a a", f"the little red fox said {i} b b") for i in range(8)
    ]
    data = write_jsonl(tmp_path / "alike.jsonl", alike)
    train(base, data, tmp_path / "run", max_steps=40, learning_rate=0.01)
    assert "the chosen answers became less likely with the rejected ones" in "".join(capfd.readouterr())


@pytest.mark.parametrize("loss_type", ["ipo", "hinge"])
def test_other_losses_come_to_prefer_the_chosen_answers(base: str, data: str, tmp_path: Path, loss_type: str) -> None:
    lines = train(base, data, tmp_path / "run", max_steps=20, learning_rate=0.001, loss_type=loss_type)
    assert lines[-1]["rewards/accuracies"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "sigmod"}, "dpo: .*sigmod"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": 1}, "dpo: .*loss_weights"),
        ({"data": "stories"}, "dpo: .*say how many to use"),
        ({"eval_steps": 5}, "dpo: eval_steps=5 without rows to evaluate on; set eval_examples"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    base: str, data: str, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        train(base, settings.pop("data", data), tmp_path / "run", **settings)
