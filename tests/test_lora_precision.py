"""LoRA in bfloat16: the model under the adapters is rounded and frozen; adapters and result are float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_align import CHATS, PAIRS, run_stage, write_jsonl
from transformers import AutoModelForCausalLM

from training import dpo, sft
from training.alignment import trainer as align_trainer

ROWS = {"sft": (sft, CHATS), "dpo": (dpo, PAIRS)}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_model_under_adapters_is_in_the_precision_of_the_run(
    name: str, precision: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the middle it goes on bit for bit; its loss falls; merged, the adapters are not rounded."""
    stage, rows = ROWS[name]
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    step_end = align_trainer.MetricsLog.on_step_end

    def looked_at(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        for parameter in kwargs["model"].parameters():
            dtypes[parameter.requires_grad].add(parameter.dtype)
        if stopped and state.global_step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(align_trainer.MetricsLog, "on_step_end", looked_at)
    data, stopped = write_jsonl(tmp_path / "rows.jsonl", rows), False
    how = {"tune": "lora", "precision": precision, "max_steps": 10, "save_steps": 5, "learning_rate": 0.003}
    lines = run_stage(stage.main, base, data, tmp_path / "whole", **how, log_steps=1)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16 if precision == "bf16" else torch.float32}}
    assert lines[-1]["loss"] < lines[0]["loss"]

    stopped = True
    with pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        run_stage(stage.main, base, data, tmp_path / "run", **how, log_steps=1)
    stopped = False
    assert run_stage(stage.main, base, data, tmp_path / "run", **how, log_steps=1) == lines
    adapters = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "run")]
    for key, value in adapters[0].items():
        assert value.dtype == torch.float32 and torch.equal(value, adapters[1][key]), key

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    untrained = AutoModelForCausalLM.from_pretrained(base)
    assert {weight.dtype for weight in load_file(tmp_path / "run" / "model" / "model.safetensors").values()} == {
        torch.float32
    }
    assert torch.equal(untrained.get_input_embeddings().weight, merged.get_input_embeddings().weight)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        before = untrained(ids).logits
        adapted = PeftModel.from_pretrained(untrained, tmp_path / "run" / "adapter")
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, merged(ids).logits, atol=1e-3)
    ends = [json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())["eos_token_id"]]
    assert ends == [merged.generation_config.eos_token_id] and ends != [untrained.generation_config.eos_token_id]
