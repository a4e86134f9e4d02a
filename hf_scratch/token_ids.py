"""What of a tokenizer makes the ids of plain text: kept apart from all else that it says, and a hash to know it by.

Token shards are ids alone. Read with another tokenizer they are other text, of the right size and without an error, so
the hash is written beside them and compared wherever they are read.
"""

import hashlib
import json
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .load import load_tokenizer

# Of a tokenizer.json; its template, decoder, truncation and padding make no ids of plain text.
MAKES_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")


def load_encoder(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer to encode documents with: whole, without padding, and the same each time.

    A `truncation` or `padding` block and BPE's `dropout` in its files are for training a model, not for its data.

    Raises:
        ValueError: There is no such tokenizer.
    """
    tokenizer = load_tokenizer(name)
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if "dropout" in json.loads(backend.to_str())["model"]:
            backend.model.dropout = None
    return tokenizer


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hex SHA-256 of vocabulary, merges, normalizer, pre-tokenizer and added tokens."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        parts = {name: content[name] for name in MAKES_IDS}
        parts["model"].pop("dropout", None)
    else:
        parts = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def refuse_other_tokenizer(
    recorded: str | None, tokenizer: PreTrainedTokenizerBase, shards: str, say: Callable[[str], None]
) -> None:
    """Compare a tokenizer with the hash that was written beside shards.

    Args:
        recorded: The hash; None if the shards are older than it, which is said and accepted.
        shards: What they are called, for the sentence.

    Raises:
        ValueError: They were made with another tokenizer.
    """
    name = tokenizer.name_or_path or "this tokenizer"
    if recorded is None:
        say(
            f"warning: the shards in {shards} do not say which tokenizer made them; they are taken for those of {name}"
        )
    elif recorded != hash_tokenizer(tokenizer):
        raise ValueError(
            f"the shards in {shards} were made with another tokenizer than {name}: their ids mean other text to it; "
            "prepare the data again with this one, or name the tokenizer that made them."
        )
