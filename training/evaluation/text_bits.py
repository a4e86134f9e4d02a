"""Bits per byte of any text for any model: text files read with the model's own tokenizer, or the run's token shards.

Bytes are those of the text, so models with different tokenizers can be compared. With a stride of the whole context
the number is lm-evaluation-harness's, whose windows do not overlap; a smaller one gives each token more context.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.bits_per_byte import Text, document_nats, in_bits
from hf_scratch.token_ids import refuse_other_tokenizer
from training.corpus.readers.plain import read_file
from training.engine.token_shards import load_shards
from training.evaluation.statistics import bootstrap_ratio


def read_texts(path: Path) -> list[str]:
    """Return the documents of a file: the rows of a table with a `text` column, else the whole file as one.

    Raises:
        ValueError: No such file, no text in it, or one that cannot be read.
    """
    rows = [text for _, text in read_file(str(path), "text") if text.strip()]
    if not rows:
        raise ValueError(f"{path} is empty; give a file with text.")
    return rows


def measure_text(
    model: PreTrainedModel, text: Text, stride: int | None, context: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the model needs for the text, with how it was read, and the nats (documents,) of each document."""
    nats = document_nats(model, text.tokens, text.starts, context, model.device, stride=stride)
    found = in_bits(nats, text.tokens, int(text.num_bytes.sum()))
    low, high = bootstrap_ratio(nats / math.log(2), text.num_bytes) if len(nats) > 1 else (None, None)
    how = {"documents": len(text.starts), "context": context, "stride": stride or max(1, context // 2)}
    return asdict(found) | {"low": low, "high": high} | how | {"perplexity": math.exp(found.nats_per_token)}, nats


def read_shards(model: PreTrainedModel, data: str, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Return the held-out text of the stage `data`.

    Raises:
        ValueError: The shards were made with another tokenizer.
    """
    shards = load_shards(Path(data), "val")
    if shards.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the shards in {data} have {shards.vocab_size} token ids, the model {model.config.vocab_size}; they were "
            "made with another tokenizer. Run training.prepare_data with the model's, or give the text by --text."
        )
    refuse_other_tokenizer(shards.tokenizer, tokenizer, data, print)
    # The shards know their bytes as a whole; for the interval each document's are those of its tokens.
    documents = [shards.document(number).tolist() for number in range(len(shards.starts))]
    num_bytes = np.array([len(text.encode()) for text in tokenizer.batch_decode(documents)], dtype=float)
    return Text(shards.tokens, shards.starts, num_bytes * shards.num_bytes / num_bytes.sum())
