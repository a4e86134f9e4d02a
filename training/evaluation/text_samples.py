"""Text that a base model writes, at several temperatures, and how much of it stands in the text that it learnt from.

Passages of held-out text, as long as each sample, are the yardstick: what people write agrees with the training text
here and there as well, and a model that has learnt nothing by heart does so no more.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.tokenizer import encode_texts, separator_of
from training.engine.token_shards import Shards, load_shards
from training.evaluation.answers import Answer, continue_all
from training.evaluation.by_heart import WORD, Shared, look_up

TEMPERATURES = (0.5, 0.8, 1.0)
TOKENS = 128  # of a sample at most
BEGINNING = 12  # words of a held-out document that a sample goes on from
YARDSTICK = 4  # held-out passages beside each sample
Document = tuple[str, list[tuple[int, int]]]  # text, and where its words begin and end
DOCUMENTS, DOCUMENT = 100, 2**14  # held-out documents that passages are taken from, and tokens of each that are read


def sample_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Path, beginnings: int, seed: int
) -> dict[str, Any]:
    """Return what the model writes after the token that begins a text, and after the beginnings of held-out documents.

    All of it depends on model, data and seed alone; the random state is left as it was.

    Args:
        data: Folder of the shards that the model was trained on.
        beginnings: How many documents are begun.

    Returns:
        The `samples`, each with its prompt, its temperature, and what it and held-out passages as long have in common
        with the training text, of which `training_text` says how much was read; and the settings.
    """
    context = getattr(model.config, "max_position_embeddings", 2048)
    documents = read_documents(load_shards(data, "val"), tokenizer)
    prompts = ["", *begin(documents, tokenizer, context // 2)[:beginnings]]
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        drawn = {temperature: write(model, tokenizer, prompts, context, temperature) for temperature in TEMPERATURES}
    samples = [
        {"prompt": prompt, "temperature": temperature, **asdict(answers[i])}
        for i, prompt in enumerate(prompts)
        for temperature, answers in drawn.items()
    ]
    rng = np.random.default_rng(seed)
    passages = [cut(documents, len(WORD.findall(sample["text"])), rng) for sample in samples]
    texts = [sample["text"] for sample in samples] + [passage for some in passages for passage in some]
    found, training_text = look_up(texts, load_shards(data, "train").tokens, tokenizer, quoted=len(samples))
    for i, sample in enumerate(samples):
        begins = len(samples) + i * YARDSTICK
        sample |= {"in_training": asdict(found[i]), "held_out": average(found[begins : begins + YARDSTICK])}
    settings = {"seed": seed, "tokens": TOKENS, "passages": YARDSTICK}
    return settings | {"training_text": training_text, "samples": samples}


def read_documents(shards: Shards, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Return held-out documents, evenly spaced, and of a long one its beginning."""
    count = len(shards.starts)
    places = np.linspace(0, count - 1, min(DOCUMENTS, count)).round().astype(int)
    read = [tokenizer.decode(shards.document(place)[: DOCUMENT - 1]) for place in places.tolist()]
    return [(text, [match.span() for match in WORD.finditer(text)]) for text in read]


def begin(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[str]:
    """Return the first words of each document that has more, unless they take as many tokens."""
    texts = [text[: spans[BEGINNING - 1][1]] for text, spans in documents if len(spans) > BEGINNING]
    lengths = map(len, encode_texts(tokenizer, texts))
    return [text for text, length in zip(texts, lengths, strict=True) if length < longest]


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    context: int,
    temperature: float,
) -> list[Answer]:
    """Return what the model writes after each prompt, drawn from all tokens."""
    encoded = [[separator_of(tokenizer), *ids] for ids in encode_texts(tokenizer, prompts)]
    options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    options["max_new_tokens"] = min(TOKENS, context - max(map(len, encoded)))
    return continue_all(model, tokenizer, encoded, len(encoded), options)


def cut(documents: Sequence[Document], words: int, rng: np.random.Generator) -> list[str]:
    """Return held-out passages of so many words; if no document has as many, of what the longest has."""
    words = min(words, max(len(spans) for _, spans in documents))
    long = [document for document in documents if len(document[1]) >= words]
    passages = []
    for _ in range(YARDSTICK):
        text, spans = long[rng.integers(len(long))]
        first = int(rng.integers(len(spans) - words + 1))
        inside = spans[first : first + words]
        passages.append(text[inside[0][0] : inside[-1][1]] if inside else "")
    return passages


def average(found: Sequence[Shared]) -> dict[str, Any]:
    """Return the mean longest run and the mean share of passages."""
    grams = [one.grams for one in found if one.grams is not None]
    return {
        "words": statistics.fmean(one.words for one in found),
        "grams": statistics.fmean(grams) if grams else None,
    }
