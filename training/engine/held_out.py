"""The held-out text that a pretraining run evaluates on: all of it, or an evenly spaced sample that costs little.

An evaluation is one forward pass, a third of the work of a training step on as many tokens. `SHARE` of the tokens that
are trained on between two evaluations therefore costs about 5 % of the time. The stage `eval` reads all of the text.
"""

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.engine.config import PretrainConfig
from training.engine.token_shards import Shards

SHARE = 0.15  # of the tokens that are trained on
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are evenly spaced however many are taken


def affordable_tokens(config: PretrainConfig) -> int:
    """Return how many tokens an evaluation may read to cost about 5 % of training."""
    return int(SHARE * config.eval_steps * config.step_tokens)


def sample_held_out(
    shards: Shards, limit: int, context: int, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> Shards:
    """Return whole documents from all over the text, of which at most `limit` tokens are read; the last may be cut.

    A document longer than `context` is read in windows, the last of which is as long as the others. The sample is a
    function of its arguments. Bytes are those of the decoded tokens; all of the text keeps its own.
    """
    lengths = np.diff(shards.starts, append=len(shards.tokens) - 1)
    if np.where(lengths > context, -(-lengths // context) * context, lengths).sum() <= limit:
        return shards
    excerpts: list[np.ndarray] = []
    left = max(2, limit)  # a separator and a token at least
    for document in np.argsort(np.arange(len(lengths)) * GOLDEN % 1):
        length = min(int(lengths[document]), left if left < context else left // context * context)
        start = int(shards.starts[document])
        excerpts.append(shards.tokens[start : start + length])
        left -= length if length <= context else -(-length // context) * context
        if left < 2 or length < lengths[document]:
            break
    ends = np.cumsum([len(excerpt) for excerpt in excerpts])
    texts = tokenizer.batch_decode([ids[1:].tolist() for ids in excerpts], clean_up_tokenization_spaces=False)
    say(f"evaluations read {ends[-1]:,} of the {len(shards.tokens):,} held-out tokens, the same ones in the whole run")
    return Shards(
        np.concatenate([*excerpts, shards.tokens[len(shards.tokens) - 1 :]]),
        np.array([0, *ends[:-1]]),
        sum(len(text.encode()) for text in texts),
        shards.vocab_size,
        shards.tokenizer,
    )
