"""Loading a model or a tokenizer that a user named, and a sentence where it is not there."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_from(auto_class: Any, path: str, what: str, **how: Any) -> Any:
    """Load a model, its configuration or a tokenizer from a folder or the Hub.

    Raises:
        ValueError: It is not there, or cannot be read; `what` says what was looked for.
    """
    try:
        return auto_class.from_pretrained(path, **how)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":. ")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder without a {what} that can be read ({reason}).")
    if reason.startswith("Repo id must"):  # what the Hub's library says of any path
        raise ValueError(f"there is no folder {path}; check the path, or make the {what} first.")
    raise ValueError(f"{path} is not a {what}'s folder, nor a Hub id that can be read ({reason}).")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer, as `load_from` does."""
    tokenizer: PreTrainedTokenizerBase = load_from(AutoTokenizer, path, "tokenizer")
    return tokenizer
