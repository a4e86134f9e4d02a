"""The usual shapes of chat data, told apart by their columns and brought into three of ours.

SFT takes conversations, DPO takes preference pairs or, unpaired, answers with a thumb up or down (KTO). A row that
does not fit its columns is an error that says what it holds and what was expected; one that fits and cannot be
trained on, for example because a tool speaks, is `Unusable`, and left out and counted by its reader.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_scratch.tokenizer import Message

Kind = Literal["conversations", "preferences", "thumbs"]
Row = dict[str, Any]

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
CALLS = ("tool_calls", "function_call")
KEYS = {"role", "content", "from", "value", "weight", "reasoning_content"}  # of a message, that are used
SYSTEM = ("system", "system_prompt")  # columns that stand before a conversation
ASKED = ("prompt", "instruction", "question", "conversations", "messages")
BELOW = ("input", "context")  # columns that stand below an instruction
ANSWERED = ("completion", "output", "response", "answer")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
STAGE = {
    "conversations": "conversations, which `python -m training.sft` takes",
    "preferences": "preference pairs, which `python -m training.dpo` takes",
    "thumbs": "answers with thumbs, which `python -m training.dpo` takes",
}


class Unusable(ValueError):
    """A row that is as it should be and cannot be trained on."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason  # the same words for every row of this kind


@dataclass(frozen=True)
class Format:
    """A shape of data: its name, what a row becomes and by what, the columns that tell it, and an example."""

    name: str
    kind: Kind
    read: Callable[[Row], Row]
    columns: tuple[frozenset[str], ...]  # a row of this format has all columns of one of these sets
    example: str

    def missing(self, row: Row) -> list[str]:
        """Return what the row lacks of the columns that it comes nearest to."""
        return min((sorted(columns - row.keys()) for columns in self.columns), key=len)

    def unused(self, row: Row) -> set[str]:
        """Return the columns of a row, and the keys of its messages, that hold something and are not looked at."""
        fitting = next(columns for columns in self.columns if columns <= row.keys())
        used = {*fitting, *SYSTEM, *(BELOW if "instruction" in fitting else ())}
        found = {column for column, value in row.items() if column not in used and value not in (None, "", [], {})}
        for column in fitting:
            messages = row[column] if isinstance(row[column], list) else [row[column]]
            keys = {k for m in messages if isinstance(m, dict) for k, v in m.items() if v not in (None, "", [], {})}
            found |= {f"{column}: {key}" for key in keys - KEYS}
        return found


def columns(*names: str) -> tuple[frozenset[str], ...]:
    """Return the sets of columns that tell a format: each name, or any one of those between strokes."""
    return tuple(map(frozenset, itertools.product(*(name.split("|") for name in names))))


# ---- reading a row ----


def read_messages(row: Row) -> Row:
    """`{"messages": [{"role", "content"}, ...]}`, or `conversations` as ShareGPT has them, with from and value."""
    column = "messages" if "messages" in row else "conversations"
    return {"messages": _with_system(row, _opening(check_messages(row[column], column), column))}


def read_alpaca(row: Row) -> Row:
    """`{"instruction", "input", "output"}`; an input stands below its instruction."""
    answer = {"role": "assistant", "content": _text(row, _first(row, ANSWERED))}
    return {"messages": [*_prompt(row, ("instruction",)), *check_messages([answer], "output")]}


def read_prompt_completion(row: Row) -> Row:
    """`{"prompt", "completion"}`, text or messages; of messages the completion alone carries loss."""
    column = _first(row, ANSWERED)
    return {"messages": [*_prompt(row), _answer(row[column], column)], "last_answer_only": True}


def read_thumbs(row: Row) -> Row:
    """`{"prompt", "completion", "label"}`: label says whether the answer was liked."""
    if not isinstance(row["label"], bool):
        raise ValueError(f"its label is {short(row['label'])} and not true or false")
    column = _first(row, ANSWERED)
    return {"prompt": _prompt(row), "completion": [_answer(row[column], column)], "label": row["label"]}


def read_pair(row: Row) -> Row:
    """`{"prompt", "chosen", "rejected"}`; an answer may be text, a message, or the chat with the prompt before it."""
    roles = {name: _first_role(row.get(name)) for name in ("prompt", "chosen")}
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
        chats.append(_with_system(row, _opening(check_messages(chat, name), name)))
    same = sum(1 for _ in _common(*chats))
    same = min(same, len(chats[0]) - 1, len(chats[1]) - 1)  # equal chats are a pair of equal answers
    prompt, answers = chats[0][:same], [chat[same] for chat in chats]
    if {answer["role"] for answer in answers} != {"assistant"} or not prompt:
        roles = " and ".join(answer["role"] for answer in answers)
        raise Unusable(
            "chosen and rejected differ before the answer",
            f"its chosen and rejected part at turn {same + 1}, where {roles} speak and not two assistants",
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


# fmt: off

FORMATS = (  # the first one of the wanted kind whose columns a row has is taken
    Format("messages", "conversations", read_messages, columns("messages"),
           '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'),
    Format("ShareGPT", "conversations", read_messages, columns("conversations"),
           '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'),
    Format("Alpaca", "conversations", read_alpaca, columns("instruction", "|".join(ANSWERED)),
           '{"instruction": "...", "input": "", "output": "..."}'),
    Format("prompt and completion", "conversations", read_prompt_completion,
           columns("prompt|question", "|".join(ANSWERED)), '{"prompt": "...", "completion": "..."}'),
    Format("prompt, chosen and rejected", "preferences", read_pair, columns("|".join(ASKED), "chosen", "rejected"),
           '{"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], '
           '"rejected": [{"role": "assistant", "content": "..."}]}'),
    Format("chosen and rejected chats", "preferences", read_chats, columns("chosen", "rejected"),
           r'{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "\n\nHuman: ...\n\nAssistant: ..."}'),
    Format("prompt, completion and thumb", "thumbs", read_thumbs,
           columns("|".join(ASKED), "|".join(ANSWERED), "label"),
           '{"prompt": "...", "completion": "...", "label": true}'),
)

# fmt: on


def detect(kinds: Sequence[Kind], row: Any, where: str) -> Format:
    """Return the format whose columns a row has.

    Raises:
        ValueError: None of these kinds; the message names the columns, and the stage that takes them if there is one.
    """
    fitting = [form for form in FORMATS if isinstance(row, dict) and not form.missing(row)]
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
        Unusable: The row cannot be trained on.
        ValueError: The row has another shape than the first one; the message shows both.
    """
    try:
        if not isinstance(row, dict):
            raise ValueError(f"it is a {type(row).__name__}")
        if missing := form.missing(row):
            raise ValueError(f"it has no {', '.join(missing)}, its columns are {', '.join(row) or '(none)'}")
        return form.read(row)
    except Unusable as error:
        raise Unusable(error.reason, f"{where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected {form.example}.") from None


def read_prompt(row: Any, where: str) -> list[Message]:
    """Return the messages of a row that has a prompt, text or messages, and no answer.

    Raises:
        ValueError: It has none, or one that cannot be asked.
    """
    try:
        if not isinstance(row, dict) or "prompt" not in row:
            columns = ", ".join(row) if isinstance(row, dict) else ""
            raise ValueError(f"it has no prompt, its columns are {columns or '(none)'}")
        return _prompt(row, ("prompt",))
    except ValueError as error:
        example = '{"prompt": "..."} or {"prompt": [{"role": "user", "content": "..."}]}'
        raise ValueError(f"{where}: {error}; expected {example}.") from None


# ---- messages ----


def check_messages(messages: Any, column: str) -> list[Message]:
    """Return messages with role and content, and with a weight of 0 and the reasoning if they have it.

    Raises:
        ValueError: Not a list of messages, an unknown role, or content that is no text.
        Unusable: A tool speaks or is called, or content is missing, no text or not encodable.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"its {column} is {short(messages)} and not a list of messages")
    return [_message(message, number, column) for number, message in enumerate(messages, start=1)]


def _message(message: Any, number: int, column: str) -> Message:
    where = f"message {number} of its {column}"
    names = ("from", "value") if column == "conversations" else ("role", "content")
    defect = f"{where} is {short(message)}, without {' and '.join(names)}"
    if not isinstance(message, dict):
        raise ValueError(defect)
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role in TOOL_ROLES or any(message.get(name) for name in CALLS):
        raise Unusable("a tool speaks or is called", f"in {where} a tool speaks or is called")
    if not isinstance(role, str):
        raise ValueError(defect)
    if role not in ROLES:
        if "from" in message:
            raise ValueError(f"turn {number} is from {role!r}, not one of {', '.join(ROLES)}")
        raise ValueError(f"{where} has the role {role!r}, not one of system, user, assistant")
    if content is None:
        raise Unusable("a message without content", defect)
    found: Message = {"role": ROLES[role], "content": _joined(content, where, defect)}
    if found["role"] == "assistant":
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise ValueError(f"{where} has the weight {short(weight)}; only 0 and 1 can be used")
        if weight == 0:
            found["weight"] = 0
        if reasoning := message.get("reasoning_content"):
            found["reasoning_content"] = _joined(reasoning, where, defect)
    return found


def _joined(content: Any, where: str, defect: str) -> str:
    """Return content that is text, or a list of parts that are."""
    if not isinstance(content, str | list):
        raise ValueError(defect)
    text = ""
    for part in content if isinstance(content, list) else [content]:
        said = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(said, str):
            raise Unusable("a part that is no text", f"{where} has a part that is no text: {short(part)}")
        text += said
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a broken `\\ud83d` in JSON
        raise Unusable("half of a surrogate pair", f"{where} holds half of a surrogate pair ({error})") from None
    return text


def short(value: Any) -> str:
    """Show a value in an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first(row: Row, names: Sequence[str]) -> str:
    return next(name for name in names if name in row)


def _text(row: Row, column: str) -> str:
    if not isinstance(row[column], str):
        raise ValueError(f"its {column} is {short(row[column])} and not text")
    return row[column]


def _first_role(value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else None
    return first.get("role") if isinstance(first, dict) else None


def _prompt(row: Row, names: Sequence[str] = ASKED) -> list[Message]:
    column = _first(row, names)
    prompt = row[column]
    if column == "instruction":
        parts = [_text(row, column), *(_text(row, below) for below in BELOW if row.get(below))]
        prompt = "\n\n".join(part for part in parts if part)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return _ends_with_user(_with_system(row, _opening(check_messages(messages, column), column)), column)


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put what a column says to the model before the conversation."""
    column = next((name for name in SYSTEM if row.get(name)), None)
    if column is None:
        return messages
    system = {"role": "system", "content": _text(row, column)}
    if messages[0]["role"] != "system":
        return [system, *messages]
    if messages[0] != system:
        raise Unusable("two system messages", f"its {column} and its first message are two system messages")
    return messages


def _answer(value: Any, column: str, prompt: Sequence[Message] = ()) -> Message:
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    checked = check_messages([messages] if isinstance(messages, dict) else messages, column)
    before = checked[:-1]
    if before and before == list(prompt[-len(before) :]):
        checked = checked[-1:]
    if [message["role"] for message in checked] != ["assistant"]:
        raise ValueError(f"its {column} is not exactly one assistant message")
    return {name: text for name, text in checked[0].items() if name != "weight"}


def _opening(messages: list[Message], column: str) -> list[Message]:
    if messages[0]["role"] == "assistant":
        raise Unusable("the assistant begins", f"its {column} begins with the assistant")
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
