"""Muon in fine-tuning: several optimizers behave as one, an interruption changes nothing, adapters are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_align import CHATS, run_stage, write_jsonl
from torch.optim.lr_scheduler import LambdaLR

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training import sft
from training.alignment.trainer import WholeStep
from training.engine.optimizer import AsOne, build_optimizers

SETTINGS: dict[str, Any] = {"optimizer": "muon", "precision": "fp32", "learning_rate": 0.003, "max_steps": 8}


def tiny_model() -> ScratchForCausalLM:
    torch.manual_seed(0)
    return ScratchForCausalLM(
        ScratchConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


def step(model: ScratchForCausalLM, number: int) -> None:
    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(number))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def build(model: ScratchForCausalLM) -> list[torch.optim.Optimizer]:
    return build_optimizers(model, "muon", 0.01, 0.1, (0.9, 0.95))


def test_as_one_they_take_the_steps_that_each_would_take() -> None:
    alone, together = tiny_model(), tiny_model()
    parts, one = build(alone), AsOne(build(together))
    schedule = LambdaLR(one, lambda number: 1 / (1 + number))
    for number in range(6):
        if number == 3:  # as a checkpoint does
            state, rate = torch.load(_saved(one.state_dict()), weights_only=True), schedule.state_dict()
            one = AsOne(build(together))
            schedule = LambdaLR(one, lambda number: 1 / (1 + number))
            one.load_state_dict(state)
            schedule.load_state_dict(rate)
        for model in (alone, together):
            step(model, number)
        for part in parts:
            for group in part.param_groups:
                group["lr"] = 0.01 / (1 + number)
            part.step()
        one.step()
        schedule.step()
        for a, b in zip(alone.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def _saved(state: dict[str, Any]) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_an_interrupted_run_ends_where_it_would_have(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    log = run_stage(sft.main, base, data, tmp_path / "whole", save_steps=3, log_steps=1, **SETTINGS)
    assert log[-1]["loss"] < log[0]["loss"]

    train = WholeStep.training_step

    def stop_at_5(self: WholeStep, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(WholeStep, "training_step", stop_at_5)
    with pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        run_stage(sft.main, base, data, tmp_path / "stopped", save_steps=3, log_steps=1, **SETTINGS)
    monkeypatch.undo()
    again = run_stage(sft.main, base, data, tmp_path / "stopped", save_steps=3, log_steps=1, **SETTINGS)
    assert again == log
    whole, stopped = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_adapters_are_not_trained_by_muon(base: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    with pytest.raises(SystemExit, match="optimizer=muon is for all weights, not for --tune lora"):
        run_stage(sft.main, base, data, tmp_path / "lora", tune="lora", **SETTINGS)
