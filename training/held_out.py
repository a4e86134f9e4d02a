"""The held-out text that a pretraining run evaluates on: all of it, or an evenly spaced sample that costs little.

An evaluation is one forward pass, a third of the work of a training step on as many tokens. `SHARE` of the tokens that
are trained on between two evaluations therefore costs about 5 % of the time. The stage `eval` reads all of the text.
"""

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.data.batches import Shards

SHARE = 0.15
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are evenly spaced however many are taken


def sample_held_out(shards: Shards, limit: int, tokenizer: PreTrainedTokenizerBase) -> Shards:
    """Return at most `limit` tokens of whole documents from all over the text; the last one is cut to what is left.

    The sample is a function of its arguments. Bytes are those of the decoded tokens; all of the text keeps its own.
    """
    if len(shards.tokens) <= limit:
        return shards
    ends = np.append(shards.starts[1:], len(shards.tokens) - 1)
    separator = shards.tokens[len(shards.tokens) - 1 :]
    pieces: list[np.ndarray] = []
    left = max(2, limit) - 1  # a separator and a token at least; the last separator is not scored
    for document in np.argsort(np.arange(len(ends)) * GOLDEN % 1):
        pieces.append(
            shards.tokens[int(shards.starts[document]) : int(min(ends[document], shards.starts[document] + left))]
        )
        left -= len(pieces[-1])
        if left < 2:
            break
    lengths = [len(piece) for piece in pieces]
    texts = tokenizer.batch_decode([piece[1:].tolist() for piece in pieces], clean_up_tokenization_spaces=False)
    return Shards(
        np.concatenate([*pieces, separator]),
        np.cumsum([0, *lengths[:-1]]),
        sum(len(text.encode()) for text in texts),
        shards.vocab_size,
    )
