"""A run that is too small to learn anything, made by the real stages, for tests of what comes after training."""

from pathlib import Path
from typing import Any

from training import dpo, prepare_data, pretrain, sft, train_tokenizer
from training.stage.files import hash_input


def make_tokenizer_and_data(run: Path, *text: str) -> None:
    """Write `run/tokenizer` and `run/data`: 320 tokens and some stories, or the options of another text."""
    source = text or ("--num_stories", "60")
    train_tokenizer.main(["--output_dir", f"{run}/tokenizer", "--vocab_size", "320", *source])
    prepare_data.main(["--output_dir", f"{run}/data", "--tokenizer", f"{run}/tokenizer", *source])


def make_base(run: Path, name: str = "pretrain", seed: int = 0) -> None:
    """Write `run/NAME`, a model after so few steps that it babbles."""
    sizes = "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --context_length 512 --batch_rows 4"
    steps = f"--max_steps 60 --eval_steps 30 --learning_rate 0.01 --warmup_steps 0 --seed {seed} --pack_documents"
    # As the stage `eval` measures, whose bits per byte are compared with those of the log.
    steps += " --precision fp32"
    folders = ["--output_dir", f"{run}/{name}", "--data", f"{run}/data", "--tokenizer", f"{run}/tokenizer"]
    pretrain.main([*folders, *sizes.split(), *steps.split()])


def make_aligned(run: Path) -> None:
    """Write `run/sft` and `run/dpo`, each after a step."""
    few = "--num_examples 4 --batch_size 4 --max_steps 1 --warmup_ratio 0 --log_steps 1 --max_length 512".split()
    sft.main(["--output_dir", f"{run}/sft", "--model", f"{run}/pretrain/model", *few])
    dpo.main(["--output_dir", f"{run}/dpo", "--model", f"{run}/sft/model", *few])


THUMBS = [{"what": "format", "found": "prompt, completion and thumb"}, {"what": "thumbs up", "found": "2 of 5"}]


def trained(model: str = "user/model", data: str = "stories") -> dict[str, Any]:
    """Return the record of a stage of alignment."""
    inputs = {"model": {"path": model, "sha256": hash_input(model)}, "data": {"path": data, "sha256": "1"}}
    return {
        "config": {"beta": 0.1, "loss_type": ["sigmoid"]},
        "inputs": inputs,
        "metrics": {"rows": 5, "tokens": 50, "steps": 3},
    }
