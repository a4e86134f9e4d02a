"""The usual shapes of chat data, told apart by their columns and brought into three of ours.

SFT takes conversations, DPO takes preference pairs or, unpaired, answers with a thumb up or down (KTO). A row that
does not fit its columns is an error that says what it holds and what was expected.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_scratch.tokenizer import Message

Kind = Literal["conversations", "preferences", "thumbs"]
Row = dict[str, Any]

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
STAGE = {
    "conversations": "conversations, which `python -m training.sft` takes",
    "preferences": "preference pairs, which `python -m training.dpo` takes",
    "thumbs": "answers with thumbs, which `python -m training.dpo` takes",
}


@dataclass(frozen=True)
class Format:
    """A shape of data: what it is called, what it becomes, the columns that tell it, and how a row is read."""

    name: str
    kind: Kind
    columns: frozenset[str]
    read: Callable[[Row], Row]
    example: str


# ---- reading a row ----


def read_messages(row: Row) -> Row:
    """`{"messages": [{"role", "content"}, ...]}`."""
    return {"messages": _opening(check_messages(row["messages"], "messages"), "messages")}


def read_sharegpt(row: Row) -> Row:
    """`{"conversations": [{"from": "human", "value": ...}, ...]}`."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"its conversations is {short(turns)} and not a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise ValueError(f"turn {number} of its conversations is {short(turn)}, without from and value")
        if turn["from"] not in SHAREGPT_ROLES:
            raise ValueError(f"turn {number} is from {turn['from']!r}, not one of {', '.join(SHAREGPT_ROLES)}")
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    return {"messages": _opening(check_messages(messages, "conversations"), "conversations")}


def read_alpaca(row: Row) -> Row:
    """`{"instruction", "input", "output"}`; an input stands below its instruction."""
    asked = [_text(row["instruction"], "instruction"), _text(row.get("input") or "", "input")]
    prompt = [{"role": "user", "content": "\n\n".join(part for part in asked if part)}]
    answer = {"role": "assistant", "content": _text(row["output"], "output")}
    return {"messages": check_messages([*prompt, answer], "instruction and output")}


def read_prompt_completion(row: Row) -> Row:
    """`{"prompt", "completion"}`, text or messages; of messages the completion alone carries loss."""
    prompt, answer = _prompt(row), _answer(row["completion"], "completion")
    return {"messages": [*prompt, answer], "last_answer_only": True}


def read_thumbs(row: Row) -> Row:
    """`{"prompt", "completion", "label"}`: label says whether the answer was liked."""
    if not isinstance(row["label"], bool):
        raise ValueError(f"its label is {short(row['label'])} and not true or false")
    return {"prompt": _prompt(row), "completion": [_answer(row["completion"], "completion")], "label": row["label"]}


def read_pair(row: Row) -> Row:
    """`{"prompt", "chosen", "rejected"}`; an answer may be text, a message, or the chat with the prompt before it."""
    roles = {name: _first_role(row[name]) for name in ("prompt", "chosen")}
    if roles == {"prompt": "assistant", "chosen": "user"}:
        raise ValueError("its prompt is what an assistant says and its chosen what a user says: are columns swapped?")
    prompt = _prompt(row)
    return {"prompt": prompt} | {name: [_answer(row[name], name, prompt)] for name in ("chosen", "rejected")}


def read_chats(row: Row) -> Row:
    """`{"chosen", "rejected"}`: two whole chats, as messages or in HH-RLHF's text; what both begin with is the prompt.

    Turns after the first answer that differs belong to neither; `later_turns` says how many there were.
    """
    chats = []
    for name in ("chosen", "rejected"):
        chat = hh_turns(row[name], name) if isinstance(row[name], str) else row[name]
        chats.append(_opening(check_messages(chat, name), name))
    same = sum(1 for _ in _common(*chats))
    same = min(same, len(chats[0]) - 1, len(chats[1]) - 1)  # equal chats are a pair of equal answers
    prompt, answers = chats[0][:same], [chat[same] for chat in chats]
    if {answer["role"] for answer in answers} != {"assistant"} or not prompt:
        roles = " and ".join(answer["role"] for answer in answers)
        raise ValueError(
            f"its chosen and rejected part at turn {same + 1}, where {roles} speak and not two assistants"
        )
    _ends_with_user(prompt, "prompt")
    later = max(len(chat) for chat in chats) - same - 1
    return {"prompt": prompt, "chosen": answers[:1], "rejected": answers[1:], "later_turns": later}


def hh_turns(text: str, column: str) -> list[Message]:
    """Return the turns of a text as HH-RLHF writes them, each begun by `\\n\\nHuman:` or `\\n\\nAssistant:`."""
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(rf"its {column} is text that does not begin with '\n\nHuman:' ({short(text)})")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": content.strip()} for speaker, content in pairs]


FORMATS = (  # of one kind, the first whose columns are all there
    Format(
        "messages",
        "conversations",
        frozenset({"messages"}),
        read_messages,
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    ),
    Format(
        "ShareGPT",
        "conversations",
        frozenset({"conversations"}),
        read_sharegpt,
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    ),
    Format(
        "Alpaca",
        "conversations",
        frozenset({"instruction", "output"}),
        read_alpaca,
        '{"instruction": "...", "input": "", "output": "..."}',
    ),
    Format(
        "prompt and completion",
        "conversations",
        frozenset({"prompt", "completion"}),
        read_prompt_completion,
        '{"prompt": "...", "completion": "..."}',
    ),
    Format(
        "prompt, chosen and rejected",
        "preferences",
        frozenset({"prompt", "chosen", "rejected"}),
        read_pair,
        '{"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], '
        '"rejected": [{"role": "assistant", "content": "..."}]}',
    ),
    Format(
        "chosen and rejected chats",
        "preferences",
        frozenset({"chosen", "rejected"}),
        read_chats,
        r'{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "\n\nHuman: ...\n\nAssistant: ..."}',
    ),
    Format(
        "prompt, completion and thumb",
        "thumbs",
        frozenset({"prompt", "completion", "label"}),
        read_thumbs,
        '{"prompt": "...", "completion": "...", "label": true}',
    ),
)


def detect(kinds: Sequence[Kind], row: Any, where: str) -> Format:
    """Return the format whose columns a row has.

    Raises:
        ValueError: None of these kinds; the message names the columns, and the stage that takes them if there is one.
    """
    columns = set(row) if isinstance(row, dict) else set()
    fitting = [form for form in FORMATS if form.columns <= columns]
    for form in fitting:
        if form.kind in kinds:
            return form
    shapes = " or ".join(form.example for form in FORMATS if form.kind in kinds)
    if not isinstance(row, dict):
        found = f"it is a {type(row).__name__}"
    elif fitting:
        found = f"its columns {', '.join(row)} are {STAGE[fitting[0].kind]}"
    else:
        found = f"its columns are {', '.join(row) or '(none)'}"
    raise ValueError(f"{where}: {found}; expected {shapes}.")


def read_row(form: Format, row: Any, where: str) -> Row:
    """Return a row in our own shape of its kind.

    Raises:
        ValueError: The row has another shape than the first one; the message shows both.
    """
    try:
        if not isinstance(row, dict):
            raise ValueError(f"it is a {type(row).__name__}")
        if missing := sorted(form.columns - row.keys()):
            raise ValueError(f"it has no {', '.join(missing)}, its columns are {', '.join(row) or '(none)'}")
        return form.read(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected {form.example}.") from None


# ---- messages ----


def check_messages(messages: Any, column: str) -> list[Message]:
    """Return messages with role and content alone.

    Raises:
        ValueError: Not a list of messages, an unknown role, or content that is no text or not encodable.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"its {column} is {short(messages)} and not a list of messages")
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"message {number} of its {column} is {short(message)}, without role and content")
        try:
            content.encode()
        except UnicodeEncodeError as error:  # a broken `\\ud83d` in JSON
            raise ValueError(f"message {number} of its {column} holds half of a surrogate pair ({error})") from None
        if role not in ROLES:
            raise ValueError(f"message {number} of its {column} has the role {role!r}, not one of {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def short(value: Any) -> str:
    """Show a value in an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {column} is {short(value)} and not text")
    return value


def _first_role(value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else None
    return first.get("role") if isinstance(first, dict) else None


def _prompt(row: Row) -> list[Message]:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return _ends_with_user(_opening(check_messages(messages, "prompt"), "prompt"), "prompt")


def _answer(value: Any, column: str, prompt: Sequence[Message] = ()) -> Message:
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    checked = check_messages(messages, column)
    if len(checked) > 1 and checked[:-1] in (list(prompt), list(prompt[-1:])):
        checked = checked[-1:]
    if [message["role"] for message in checked] != ["assistant"]:
        raise ValueError(f"its {column} is not exactly one assistant message")
    return checked[0]


def _opening(messages: list[Message], column: str) -> list[Message]:
    if messages[0]["role"] == "assistant":
        raise ValueError(f"its {column} begins with the assistant")
    return messages


def _ends_with_user(messages: list[Message], column: str) -> list[Message]:
    if messages[-1]["role"] != "user":
        raise ValueError(f"its {column} does not end with a user message")
    return messages


def _common(first: list[Message], second: list[Message]) -> list[Message]:
    same = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        same.append(one)
    return same
