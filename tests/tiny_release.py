"""A release folder small enough for the tests of the Space: a model of noise that talks until it is stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedTokenizerBase

NAME = "Tiny teller"
EXAMPLE = "Tell me a story about an owl."
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def save_release(folder: Path, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save model, tokenizer and card in the folder, as people get them."""
    model = make_model(max_position_embeddings=4096)
    model.generation_config = GenerationConfig(
        eos_token_id=[3, 0],
        pad_token_id=1,
        do_sample=True,
        temperature=0.6,
        top_k=30,
        max_new_tokens=64,
        suppress_tokens=[0, 1, 2, 3],  # control tokens: it never ends by itself
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"model_name": NAME, "widget": [{"messages": [{"role": "user", "content": EXAMPLE}]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Another title\n")
    return folder
