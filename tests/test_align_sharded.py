"""What SFT, DPO and GRPO save where each process holds a part of the model, as with `training/launch/fsdp2.yaml`."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_pretrain import one_thread
from transformers import AutoModelForCausalLM

WORKER = Path(__file__).parent / "sharded_save_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_model_in_shards_is_saved_whole(tune: str, base: str, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, WORKER, base, str(tmp_path), tune]
    processes = [
        subprocess.Popen(command, env=one_thread() | group | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    if tune == "full":
        assert all(torch.equal(weight, whole[name]) for name, weight in saved.state_dict().items())
        assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")  # tied, so kept once
        return
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    for name, weight in adapted.state_dict().items():
        assert torch.equal(weight, whole[name])
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)
