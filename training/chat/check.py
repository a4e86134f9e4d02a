"""The data check: what is in the rows before anything is trained on them, as a table.

An error is what leaves nothing to learn and stops the run; a warning is counted, printed and written to the stage's
record, and the run goes on. Nothing is left out without standing here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_scratch.chat_tokens import ChatEncoder
from hf_scratch.tokenizer import Message
from training.chat.formats import Row
from training.chat.rows import Loaded
from training.chat.tokenize import Tokenized

Level = Literal["", "warning", "error"]
LENGTH_BIAS = (0.65, 0.1)  # warn where one side is longer in this share of the pairs, and by this share on average


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    what: str
    found: str
    level: Level = ""
    note: str = ""  # what is done about it


def check_data(tokenizer: PreTrainedTokenizerBase, found: Tokenized, loaded: Loaded, max_length: int) -> list[Finding]:
    """Return what is in the rows that were loaded; `found` is what those to train on became as tokens."""
    rows, held_out = loaded.train, loaded.held_out
    read = len(rows) + len(held_out) + sum(loaded.left_out.values())
    findings = [
        Finding("format", loaded.format),
        Finding("rows", f"{len(rows):,} to train on, {len(held_out):,} held out"),
        *(_counted(f"rows left out: {reason}", count, read, "") for reason, count in loaded.left_out.items()),
        *([Finding("not used", ", ".join(sorted(loaded.unused)))] if loaded.unused else []),
        _counted("duplicate rows", _duplicates(rows), len(rows), "kept"),
        *_turns(rows),
        *_lengths(found, max_length),
        _counted("rows with a control token's spelling", _spelled(tokenizer, rows), len(rows), "it stays text"),
        *_template(tokenizer, found, rows),
    ]
    if found.kind == "preferences":
        findings += _pairs(found, rows)
    if found.kind == "thumbs":
        findings.append(_thumbs(found))
    if held_out:
        known = {_prompt(row) for row in rows}
        overlap = sum(_prompt(row) in known for row in held_out)
        note = "the held-out figures flatter the model"
        findings.append(_counted("held-out prompts that training has too", overlap, len(held_out), note))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines of text in columns."""
    width, column = (max(len(getattr(line, name)) for line in findings) for name in ("what", "found"))
    lines = ["The data:"]
    for line in findings:
        remark = ": ".join(part for part in (line.level, line.note) if part)
        lines.append(f"  {line.what:<{width}}  {line.found:<{column}}  {remark}".rstrip())
    return "\n".join(lines)


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise ValueError if the table has an error."""
    errors = [f"{line.what}: {line.found} ({line.note})" for line in findings if line.level == "error"]
    if errors:
        raise ValueError(f"the data cannot be trained on: {'; '.join(errors)}.")


def _counted(what: str, count: int, of: int, note: str, *, fatal: bool = False) -> Finding:
    """A count that should be 0; `fatal` is an error where it is all rows."""
    if not count:
        return Finding(what, "0")
    return Finding(what, f"{count:,} of {of:,}", "error" if fatal and count == of else "warning", note)


def _turns(rows: Sequence[Row]) -> list[Finding]:
    chats = [_messages(row) for row in rows]
    empty = sum(any(not m["content"].strip() for m in chat if m["role"] != "assistant") for chat in chats)
    silent = sum(any(not m["content"].strip() for m in chat if m["role"] == "assistant") for chat in chats)
    findings = [
        _counted("rows with an empty turn of user or system", empty, len(rows), "kept"),
        _counted("rows with an empty answer", silent, len(rows), "it teaches to say nothing", fatal=True),
        _counted("rows with turns out of order", sum(map(_disordered, chats)), len(rows), "kept if the template does"),
    ]
    if "messages" in rows[0]:
        unanswered = sum(chat[-1]["role"] != "assistant" for chat in chats)
        findings.append(
            _counted("rows that do not end with an answer", unanswered, len(rows), "the end carries no loss")
        )
    later = sum(row.get("later_turns", 0) > 0 for row in rows)
    if later:
        note = "turns after the first answer that differs are left out"
        findings.append(_counted("chats that go on after they part", later, len(rows), note))
    return findings


def _lengths(found: Tokenized, max_length: int) -> list[Finding]:
    p50, p95 = np.percentile(found.full_lengths, [50, 95])
    counts, total = found.counts, len(found.full_lengths)
    return [
        Finding("tokens a row", f"p50 {p50:.0f}, p95 {p95:.0f}, max {found.full_lengths.max()}"),
        _counted(f"rows longer than max_length={max_length}", counts["truncated"], total, "cut"),
        _counted("answers cut before their end token", counts["unended"], total, "they do not teach to stop"),
        _counted("rows dropped", counts["dropped"], total, "no answer within max_length"),
    ]


def _template(tokenizer: PreTrainedTokenizerBase, found: Tokenized, rows: Sequence[Row]) -> list[Finding]:
    """What the chat template does not take as it stands; nothing where it takes all."""
    counts = (
        ("rows that the chat template refuses", found.refused, "left out"),
        ("rows with reasoning_content", _unread_reasoning(tokenizer, rows), "left out: the template takes none"),
        ("rows that the template changes with more turns", found.split, "each answer is a row, as if it were last"),
    )
    return [_counted(what, count, len(rows), note) for what, count, note in counts if count]


def _thumbs(found: Tokenized) -> Finding:
    labels = found.dataset["label"]
    said = f"{sum(labels):,} of {len(labels):,}"
    if sum(labels) in (0, len(labels)):
        return Finding("thumbs up", said, "error", "both thumbs are needed")
    return Finding("thumbs up", said)


def _pairs(found: Tokenized, rows: Sequence[Row]) -> list[Finding]:
    equal = sum(row["chosen"] == row["rejected"] for row in rows)
    difference = found.answer_lengths["chosen"] - found.answer_lengths["rejected"]
    longer, shorter = (difference > 0).mean(), (difference < 0).mean()
    by = abs(difference.mean()) / np.mean(list(found.answer_lengths.values()))
    biased = max(longer, shorter) > LENGTH_BIAS[0] and by > LENGTH_BIAS[1]
    side = "longer" if longer >= shorter else "shorter"
    return [
        _counted("chosen equal to rejected", equal, len(rows), "nothing is learnt from them", fatal=True),
        Finding(
            "chosen longer than rejected",
            f"in {longer:.0%}, by {difference.mean():+.1f} tokens on average",
            "warning" if biased else "",
            f"the model may learn to answer {side}, whatever else is chosen" if biased else "",
        ),
    ]


def _messages(row: Row) -> list[Message]:
    """All messages of a row; of a pair both answers, after the prompt."""
    if "messages" in row:
        return row["messages"]
    return [*row["prompt"], *row.get("chosen", ()), *row.get("rejected", ()), *row.get("completion", ())]


def _disordered(chat: Sequence[Message]) -> bool:
    """Whether a system message is not the first, or user and assistant do not take turns."""
    roles = [message["role"] for message in chat]
    roles = roles[1:] if roles[0] == "system" else roles
    if roles[-2:] == ["assistant", "assistant"] and len(roles) > 2:
        roles = roles[:-1]  # the two answers of a pair
    return roles != [("user", "assistant")[i % 2] for i in range(len(roles))]


def _duplicates(rows: Sequence[Row]) -> int:
    return sum(count - 1 for count in Counter(map(repr, rows)).values())


def _spelled(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> int:
    encoder = ChatEncoder(tokenizer)
    return sum(any(map(encoder.is_spelled, _messages(row))) for row in rows)


def _unread_reasoning(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> int:
    if "reasoning_content" in str(tokenizer.chat_template):
        return 0
    return sum(any("reasoning_content" in message for message in _messages(row)) for row in rows)


def _prompt(row: Row) -> str:
    """What comes before the first answer, as one key."""
    messages = row["prompt"] if "prompt" in row else row["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return repr(messages if "prompt" in row else messages[: answers[0] if answers else None])
