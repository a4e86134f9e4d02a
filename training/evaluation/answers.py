"""What models answer to the story prompts, and what is counted in the answers.

The checker of the stories reads each answer; beside it stand the end token, length, repetition and how varied the
answers are together.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.tokenizer import Message, encode_prompt
from training.evaluation.statistics import jackknife, mean, rate
from training.stories.checker import PARTS, Verdict
from training.stories.world import QUESTIONS

REPEATED = 4  # words of a phrase that counts as repeated when it comes again in the same answer


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt: text without the end token, tokens with it, and whether it came to an end."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Asking:
    """How the prompts are asked."""

    temperature: float
    top_k: int
    max_new_tokens: int
    batch_size: int
    seed: int


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[list[Message]],
    how: Asking,
    *,
    sampled: bool,
) -> list[Answer]:
    """Answer the prompts greedily or sampled, up to an end token.

    Raises:
        ValueError: A prompt fills the model's context.
    """
    encoded = [encode_prompt(tokenizer, messages) for messages in asked]
    if not encoded:
        return []
    room = model.config.max_position_embeddings - max(map(len, encoded))
    if room < 1:
        raise ValueError(
            f"the longest prompt has {max(map(len, encoded))} tokens and the model's context "
            f"{model.config.max_position_embeddings}; there is no room for an answer. Train with a longer context."
        )
    draw = (
        {"do_sample": True, "temperature": how.temperature, "top_k": how.top_k, "top_p": 1.0}
        if sampled
        else {"do_sample": False}
    )
    torch.manual_seed(how.seed)
    return continue_all(
        model, tokenizer, encoded, how.batch_size, draw | {"max_new_tokens": min(how.max_new_tokens, room)}
    )


def continue_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    batch_size: int,
    options: dict[str, Any],
) -> list[Answer]:
    """Continue token ids up to an end token, by these options of `generate`."""
    answers: list[Answer] = []
    for i in range(0, len(encoded), batch_size):
        inputs = tokenizer.pad({"input_ids": encoded[i : i + batch_size]}, padding_side="left", return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        output = model.generate(**inputs.to(model.device), **options)
        answers += [read_answer(tokenizer, ids, model) for ids in output[:, length:].tolist()]
    return answers


def read_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int], model: PreTrainedModel) -> Answer:
    """Cut generated token ids at the first end token and decode them."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    # Control tokens inside an answer stay visible: they are a fault that checker and reader should see.
    return Answer(tokenizer.decode(ids[:end]), len(ids) if end is None else end + 1, end is not None)


def score(checks: Sequence[Verdict], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the rates over all greedy answers and their mean length in tokens, each with its 95 % interval."""
    return {
        "followed": rate(sum(found.followed for found in checks), len(checks)),
        "ended": rate(sum(said.ended for said in answers), len(answers)),
        "parts": {part: rate(sum(getattr(found, part) for found in checks), len(checks)) for part in PARTS},
        "tokens": mean([said.tokens for said in answers]),
    }


def preference(checks: Sequence[Verdict]) -> dict[str, Any]:
    """Return how sampled answers end; greedy ones would show the likelier ending only, however close the two are."""
    followed = [found for found in checks if found.followed]
    return {
        "followed_sampled": rate(len(followed), len(checks)),
        "happy": rate(sum(found.happy for found in checks), len(checks)),
        "happy_of_followed": rate(sum(found.happy for found in followed), len(followed)),
    }


def score_turns(kinds: Sequence[str], right: Sequence[bool]) -> dict[str, Any]:
    """Return the rate of right answers to turns of each kind, and to all that are a question about a story."""
    if not kinds:
        return {}
    by_kind: dict[str, list[bool]] = {kind: [] for kind in dict.fromkeys(kinds)}
    for kind, is_right in zip(kinds, right, strict=True):
        by_kind[kind].append(is_right)
    by_kind = {"questions": [is_right for kind in QUESTIONS for is_right in by_kind[kind]]} | by_kind
    return {kind: rate(sum(found), len(found)) for kind, found in by_kind.items()}


def variety(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return how varied answers are together and how much each repeats itself.

    distinct-n is the share of different sequences among all of n words (arXiv:1510.03055).
    """
    words = [said.text.split() for said in answers]
    distinct = {f"distinct_{n}": distinct_n([_grams(said, n) for said in words]) for n in (1, 2, 3)}
    return distinct | {"repetition": mean([1 - _distinct(_grams(said, REPEATED)) for said in words])}


def distinct_n(answers: Sequence[list[tuple[str, ...]]]) -> dict[str, Any]:
    """Return the share of different sequences among those of all answers, with its 95 % interval.

    The interval is the jackknife's, since the bootstrap would count an answer that is drawn twice as a repetition.
    """
    holders = Counter(gram for said in answers for gram in set(said))  # answers that have it
    own = [sum(holders[gram] == 1 for gram in set(said)) for said in answers]
    total = sum(map(len, answers))
    without = [
        (len(holders) - unique) / (total - len(said)) if total > len(said) else 1.0
        for said, unique in zip(answers, own, strict=True)
    ]
    return jackknife(len(holders) / total if total else 1.0, without)


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(itertools.islice(words, i, None) for i in range(n)), strict=False))


def _distinct(grams: list[tuple[str, ...]]) -> float:
    return len(set(grams)) / len(grams) if grams else 1.0
