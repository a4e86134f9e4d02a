"""Rows become token ids: which tokens carry loss, what is cut at `max_length`, what is dropped, and all of it counted.

`show` prints the first row as the model sees it: the text with its control tokens, the token pieces, and which of
them carry loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_scratch.chat_tokens import Encoded, encode_chats
from hf_scratch.tokenizer import Message
from training.chat.formats import Kind, Row
from training.engine.batches import IGNORE

SIDES = {"preferences": ("chosen", "rejected"), "thumbs": ("completion",)}
NOUNS = {"conversations": "conversations", "preferences": "pairs", "thumbs": "answers with a thumb"}


@dataclass(frozen=True)
class Tokenized:
    """What a trainer takes, what was counted on the way, and the lengths of the rows before anything was cut."""

    kind: Kind
    dataset: Dataset
    counts: dict[str, int]  # rows, tokens, answer_tokens, truncated, unended, dropped
    full_lengths: np.ndarray  # tokens of each row that came in; of a pair with the longer answer
    answer_lengths: dict[str, np.ndarray]  # tokens of each answer that came in, by side
    split: int = 0  # conversations of which the template shows an answer otherwise once another turn follows
    refused: int = 0  # rows that the template refuses

    def summary(self) -> str:
        """What came of the rows, in a sentence or two."""
        text = (
            "{rows:,} {noun}, {tokens:,} tokens of which {answer_tokens:,} carry loss; "
            "{truncated:,} cut at max_length, {dropped:,} dropped because no answer was left"
        ).format(noun=NOUNS[self.kind], **self.counts)
        if self.split:
            text += (
                f". The chat template changes earlier answers when another turn follows: {self.split:,} conversations "
                "became a row for each answer, as it reads when it is the last one"
            )
        return text


def tokenize(tokenizer: PreTrainedTokenizerBase, kind: Kind, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Return the rows as token ids.

    Raises:
        ValueError: Nothing is left, or the chat template cannot be trained on.
    """
    if kind == "conversations":
        return _conversations(tokenizer, rows, max_length)
    return _answers(tokenizer, kind, rows, max_length)


def _conversations(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    counts, full_lengths, split, refused = _new_counts(), [], 0, 0
    encoded = encode_chats(
        tokenizer,
        (only_last_answer(row["messages"]) if "last_answer_only" in row else row["messages"] for row in rows),
    )
    for _, sequences in zip(_progress(rows), encoded, strict=True):
        split += len(sequences) > 1
        refused += not sequences
        for ids, mask in sequences:
            full_lengths.append(len(ids))
            tokens = np.array(ids[:max_length], dtype=np.int32)
            labels = np.where(np.array(mask[:max_length]) == 1, tokens, IGNORE).astype(np.int32)
            if (labels == IGNORE).all():
                counts["dropped"] += 1
                continue
            columns["input_ids"].append(tokens)
            columns["labels"].append(labels)
            counts["rows"] += 1
            counts["tokens"] += len(tokens)
            counts["answer_tokens"] += int((labels != IGNORE).sum())
            counts["truncated"] += len(ids) > max_length
            counts["unended"] += len(ids) > max_length and mask[max_length - 1 : max_length + 1] == [1, 1]
    if not counts["rows"]:
        raise ValueError(
            f"none of the {len(rows)} conversations has an answer within max_length={max_length} tokens; "
            "raise max_length, or check the roles."
        )
    return Tokenized("conversations", Dataset.from_dict(columns), counts, np.array(full_lengths), {}, split, refused)


def _answers(tokenizer: PreTrainedTokenizerBase, kind: Kind, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Encode prompts and the answers to them; an answer ends with its end token, as the model's own would."""
    sides = SIDES[kind]
    columns: dict[str, list] = {name: [] for name in ("prompt_ids", *(f"{side}_ids" for side in sides))}
    if kind == "thumbs":
        columns["label"] = []
    counts, full_lengths, answer_lengths, refused = _new_counts(), [], [], 0
    encoded = encode_chats(tokenizer, (only_last_answer(row["prompt"] + row[side]) for row in rows for side in sides))
    for row in _progress(rows):
        sequences = [next(encoded) for _ in sides]
        if not all(sequences):
            refused += 1
            continue
        prompt, answers = split_answers([sequence[0] for sequence in sequences])
        answer_lengths.append([len(answer) for answer in answers])
        full_lengths.append(len(prompt) + max(answer_lengths[-1]))
        room = max_length - len(prompt)
        if room <= 0:
            counts["dropped"] += 1
            continue
        columns["prompt_ids"].append(prompt)
        for side, answer in zip(sides, answers, strict=True):
            columns[f"{side}_ids"].append(answer[:room])
        if kind == "thumbs":
            columns["label"].append(row["label"])
        answer_tokens = sum(min(length, room) for length in answer_lengths[-1])
        counts["rows"] += 1
        counts["tokens"] += len(sides) * len(prompt) + answer_tokens
        counts["answer_tokens"] += answer_tokens
        counts["truncated"] += full_lengths[-1] > max_length
    counts["unended"] = counts["truncated"]
    if not counts["rows"]:
        raise ValueError(
            f"the prompts of all {len(rows)} {NOUNS[kind]} fill max_length={max_length} tokens; raise it."
        )
    by_side = dict(zip(sides, np.array(answer_lengths).T, strict=True))
    return Tokenized(kind, Dataset.from_dict(columns), counts, np.array(full_lengths), by_side, refused=refused)


def row_lengths(dataset: Dataset) -> list[int]:
    """Return the tokens of each row, by which rows are put together; of a pair with the longer answer.

    Of thumbs all are the same: sorted by length, a batch could hold one side only.
    """
    if "input_ids" in dataset.column_names:
        return [len(ids) for ids in dataset["input_ids"]]
    if "label" in dataset.column_names:
        return [1] * len(dataset)
    columns = (dataset[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
    return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in zip(*columns, strict=True)]


def split_answers(encoded: Sequence[Encoded]) -> tuple[list[int], list[list[int]]]:
    """Return the prompt that the chats share, and the last answer of each."""
    spans = [last_answer(mask) for _, mask in encoded]
    start = min(begin for begin, _ in spans)
    return encoded[0][0][:start], [ids[start:end] for (ids, _), (_, end) in zip(encoded, spans, strict=True)]


def only_last_answer(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation in which only the last answer carries loss."""
    return [*(message | {"weight": 0} for message in messages[:-1]), messages[-1]]


def last_answer(mask: list[int]) -> tuple[int, int]:
    """Return where the last run of ones begins and ends."""
    end = len(mask) - mask[::-1].index(1)
    return end - [0, *mask[:end]][::-1].index(0), end


def _new_counts() -> dict[str, int]:
    return dict.fromkeys(("rows", "tokens", "answer_tokens", "truncated", "unended", "dropped"), 0)


def _progress(rows: Sequence[Row]) -> Iterable[Row]:
    return tqdm(rows, "tokenize", disable=None, leave=False)


# ---- the first row as the model sees it ----


def show(tokenizer: PreTrainedTokenizerBase, found: Tokenized, *, whole: bool = False) -> str:
    """Return the first row as text, then in token pieces with what carries loss; `whole` leaves no piece out."""
    lines = []
    for title, ids, carries in _sequences(found):
        lines += [f"{title} as the model sees it:"]
        lines += [f"    {line}".rstrip() for line in tokenizer.decode(ids).rstrip().split("\n")]
        lines += ["  in token pieces, and whether they carry loss:"]
        borders = [0, *(np.flatnonzero(np.diff(carries)) + 1), len(ids)]
        for start, end in zip(borders, borders[1:], strict=False):
            shown = ids[start:end] if whole or end - start <= 40 else ids[start : start + 40]
            pieces = " ".join(repr(tokenizer.decode([token])) for token in shown)
            more = f" and {end - start - len(shown)} more" if len(shown) < end - start else ""
            lines.append(f"  {'loss' if carries[start] else 'no loss':>8} | {pieces}{more}")
    return "\n".join(lines)


def _sequences(found: Tokenized) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Yield title, token ids and what carries loss of each sequence of the first row."""
    row = found.dataset[0]
    if found.kind == "conversations":
        yield "The first row", row["input_ids"], np.array(row["labels"]) != IGNORE
        return
    prompt = row["prompt_ids"]
    for side in SIDES[found.kind]:
        answer = row[f"{side}_ids"]
        thumb = f", thumb {'up' if row['label'] else 'down'}" if found.kind == "thumbs" else ""
        yield f"The first {side}{thumb}", prompt + answer, np.arange(len(prompt) + len(answer)) >= len(prompt)
