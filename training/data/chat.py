"""Conversations and preference pairs: from the embedded stories, a JSONL or Parquet file or the Hub, to token ids.

Every row is checked when it is read, and a row that does not fit is an error that shows the expected shape. Content is
encoded as plain text whatever it spells, and a mask marks what the assistant says, its end tokens included.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_scratch.tokenizer import Message, encode_chat
from training.data import stories

Kind = Literal["conversations", "preferences"]
Row = dict[str, list[Message]]
Rendered = tuple[str, list[tuple[int, int]]]  # a conversation as text, and where each answer begins and ends in it
Encoded = tuple[list[int], list[int]]  # token ids, and 1 where the assistant speaks

ROLES = ("system", "user", "assistant")
SHAPES: dict[Kind, str] = {
    "conversations": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "preferences": (
        '{"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], '
        '"rejected": [{"role": "assistant", "content": "..."}]}'
    ),
}
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "conversations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
}
BATCH = 1000  # rows tokenized at once: enough to keep all cores busy


# ---- reading ----


def load_rows(kind: Kind, data: str, num_train: int, num_eval: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the rows to evaluate on.

    Args:
        kind: What a row is, see `SHAPES`; text instead of messages in a preference row is one turn.
        data: `stories`, a .jsonl or .parquet file, or the Hub id of a data set (its `train` split).
        num_train: Rows to train on; 0 takes all of a file or data set.
        num_eval: Rows to hold out. Stories have a split of their own for it; of a file they are drawn by the seed.

    Raises:
        ValueError: No such file, an empty one, one that is not UTF-8, or a row of another shape; or too few rows.
    """
    if data == "stories":
        if num_train < 1:
            raise ValueError("the embedded stories never end; say how many to use, for example num_examples=20000.")
        generate = stories.conversations if kind == "conversations" else stories.preferences
        return (
            list(itertools.islice(generate("train", seed), num_train)),
            list(itertools.islice(generate("dev", seed), num_eval)),
        )
    rows = [check_row(kind, row, where) for where, row in _read(data)]
    if not rows:
        raise ValueError(f"{data} is empty; expected rows like {SHAPES[kind]}.")
    if len(rows) <= num_eval:
        raise ValueError(f"{data} has {len(rows)} rows, so eval_examples={num_eval} leaves none to train on.")
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, train = order[:num_eval], order[num_eval:]
    return [rows[i] for i in (train[:num_train] if num_train else train)], [rows[i] for i in held_out]


def _read(data: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file or Hub data set, with a name for it that a user can find."""
    path = Path(data)
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.exists() or path.suffix in (".json", ".csv", ".txt"):
        raise ValueError(f"{data} is not a .jsonl or .parquet file; convert it, one conversation a row.")
    else:
        yield from _read_hub(data)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON ({error.msg}): {line[:60]!r}") from None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path given by --data.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); "
            "convert it, for example with `iconv -t UTF-8`."
        ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path given by --data.") from None
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}).") from None
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _read_hub(data: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(data, split="train")
    except Exception as error:  # each way of not being there has its own exception in the Hub stack
        raise ValueError(
            f"{data} is neither `stories`, nor a .jsonl or .parquet file, nor a data set with a train split that can "
            f"be read from the Hub ({str(error).splitlines()[0]})."
        ) from None
    for number, row in enumerate(dataset, start=1):
        yield f"{data}, row {number}", row


def check_row(kind: Kind, row: Any, where: str) -> Row:
    """Return the row's messages, each with its role and content alone.

    Raises:
        ValueError: The row has another shape; the message shows both.
    """
    columns = COLUMNS[kind]
    try:
        if not isinstance(row, dict):
            raise ValueError(f"it is a {type(row).__name__}")
        if missing := [name for name in columns if name not in row]:
            raise ValueError(f"it has no {', '.join(missing)}, its columns are {', '.join(row) or '(none)'}")
        if kind == "conversations":
            return {"messages": _check_messages(row["messages"], "messages")}
        checked = {name: _check_messages(_as_messages(name, row[name]), name) for name in columns}
        if checked["prompt"][-1]["role"] != "user":
            raise ValueError("its prompt does not end with a user message")
        for name in ("chosen", "rejected"):
            if [message["role"] for message in checked[name]] != ["assistant"]:
                raise ValueError(f"its {name} is not exactly one assistant message")
        return checked
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected {SHAPES[kind]}.") from None


def _as_messages(column: str, value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user" if column == "prompt" else "assistant", "content": value}]
    return value


def _check_messages(messages: Any, column: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"its {column} is {_short(messages)} and not a list of messages")
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"message {number} of its {column} is {_short(message)}, without role and content")
        try:
            content.encode()
        except UnicodeEncodeError as error:  # a broken `\\ud83d` in JSON
            raise ValueError(f"message {number} of its {column} holds half of a surrogate pair ({error})") from None
        if role not in ROLES:
            raise ValueError(f"message {number} of its {column} has the role {role!r}, not one of {', '.join(ROLES)}")
    if column in ("messages", "prompt") and messages[0]["role"] == "assistant":
        raise ValueError(f"its {column} begins with the assistant")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- encoding ----


def encode_chats(tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Sequence[Message]]) -> Iterator[Encoded]:
    """Do what `hf_scratch.encode_chat` does, for many conversations and several times as fast.

    Raises:
        ValueError: The chat template refuses a conversation, or changes earlier text when a turn is added.
    """
    conversations = iter(conversations)
    try:
        while batch := list(itertools.islice(conversations, BATCH)):
            yield from _encode_batch(tokenizer, batch)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses a conversation of this data: {error}") from None


def _encode_batch(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Render to text and encode all texts at once, except where content spells a control token."""
    control = re.compile("|".join(re.escape(token) for token in tokenizer.added_tokens_encoder))
    plain = [not any(control.search(message["content"]) for message in chat) for chat in conversations]
    rendered = [_render(tokenizer, chat) for chat in itertools.compress(conversations, plain)]
    fast = iter(_encode_rendered(tokenizer, rendered) if rendered else [])
    return [
        next(fast) if is_plain else encode_chat(tokenizer, chat)
        for chat, is_plain in zip(conversations, plain, strict=True)
    ]


def _encode_rendered(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> Iterator[Encoded]:
    batch = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_attention_mask=False)
    for row, (ids, (_, spans)) in enumerate(zip(batch["input_ids"], rendered, strict=True)):
        mask = [0] * len(ids)
        for start, end in spans:
            first, last = batch.char_to_token(row, start), batch.char_to_token(row, end - 1)
            mask[first : last + 1] = [1] * (last + 1 - first)
        yield ids, mask


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Rendered:
    """Return a conversation as text, and where in it each answer begins and its end token ends."""
    template = tokenizer.apply_chat_template
    text = template(list(messages), tokenize=False)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template(list(messages[:turn]), tokenize=False, add_generation_prompt=True)
        after = template(list(messages[: turn + 1]), tokenize=False) if turn + 1 < len(messages) else text
        if not text.startswith(after) or not after.startswith(before):
            raise ValueError(
                f"the chat template changes earlier text when turn {turn + 1} is added; "
                "the assistant's tokens cannot be told from the rest. Use a template that only appends."
            )
        ends = [after.rfind(token) + len(token) for token in tokenizer.all_special_tokens if token in after]
        if max(ends, default=0) <= len(before):
            raise ValueError("the chat template ends an answer without a special token; the model would never stop.")
        spans.append((len(before), max(ends)))
    return text, spans
