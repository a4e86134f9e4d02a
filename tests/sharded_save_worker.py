"""One of several processes of tests/test_align_sharded.py: saves a model of which it holds a part, as a stage does."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer

from training.alignment import stage as align
from training.alignment.config import AlignConfig

if __name__ == "__main__":
    base, output, tune = sys.argv[1:]
    torch.set_num_threads(1)
    config = AlignConfig(model=base, tune=tune)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True)
    model: Any = align.load_weights(base)
    torch.manual_seed(0)
    if adapters := align.lora_config(config):
        model = get_peft_model(model, adapters)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    trainer: Any = SimpleNamespace(
        accelerator=accelerator, model=model, processing_class=AutoTokenizer.from_pretrained(base)
    )
    stage: Any = SimpleNamespace(folder=Path(output))
    align.save(trainer, config, stage)
    if accelerator.is_main_process:
        torch.save(whole, Path(output) / "whole.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()
