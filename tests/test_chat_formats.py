"""Every usual shape of chat data is told by its columns and read as what it means, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_align import pair, turns, write_jsonl

from training.data.chat import load_rows
from training.data.chat_formats import Kind, Row

ASKED, SAID, UNSAID = "Who has the kite?", "The red fox.", "No one."
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: " + ASKED + "\n\nAssistant: "
TALK = turns("a", "b", ASKED)
SHARE = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate([ASKED, SAID])]


def last(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    ("messages", {"messages": turns(ASKED, SAID)}, {"messages": turns(ASKED, SAID)}),
    ("ShareGPT", {"conversations": SHARE}, {"messages": turns(ASKED, SAID)}),
    ("Alpaca", {"instruction": ASKED, "input": "", "output": SAID}, {"messages": turns(ASKED, SAID)}),
    ("Alpaca", {"instruction": "Say it.", "input": "A", "output": "B"}, {"messages": turns("Say it.\n\nA", "B")}),
    ("Alpaca", {"instruction": ASKED, "output": SAID}, {"messages": turns(ASKED, SAID)}),
    (
        "prompt and completion",
        {"prompt": ASKED, "completion": SAID},
        {"messages": turns(ASKED, SAID), "last_answer_only": True},
    ),
    (
        "prompt and completion",
        {"prompt": TALK, "completion": [last(SAID)]},
        {"messages": [*TALK, last(SAID)], "last_answer_only": True},
    ),
]
PREFERENCES: list[tuple[str, Row, Row]] = [
    (
        "prompt, chosen and rejected",
        {"prompt": ASKED, "chosen": SAID, "rejected": UNSAID},
        pair(ASKED, SAID, UNSAID),
    ),
    (
        "prompt, chosen and rejected",
        {"prompt": ASKED, "chosen": turns(ASKED, SAID), "rejected": turns(ASKED, UNSAID), "score": 1},
        pair(ASKED, SAID, UNSAID),
    ),
    (
        "chosen and rejected chats",
        {"chosen": turns(ASKED, SAID), "rejected": turns(ASKED, UNSAID)},
        pair(ASKED, SAID, UNSAID) | {"later_turns": 0},
    ),
    (
        "chosen and rejected chats",
        {"chosen": [*TALK, last(SAID), *turns("c", "d")], "rejected": [*TALK, last(UNSAID)]},
        {"prompt": TALK, "chosen": [last(SAID)], "rejected": [last(UNSAID)], "later_turns": 2},
    ),
    (
        "chosen and rejected chats",
        {"chosen": HH + SAID, "rejected": HH + UNSAID},
        {"prompt": TALK, "chosen": [last(SAID)], "rejected": [last(UNSAID)], "later_turns": 0},
    ),
    (
        "chosen and rejected chats",
        {"chosen": turns(ASKED, SAID), "rejected": turns(ASKED, SAID)},
        pair(ASKED, SAID, SAID) | {"later_turns": 0},
    ),
]
THUMBS = [
    (
        "prompt, completion and thumb",
        {"prompt": ASKED, "completion": SAID, "label": True},
        {"prompt": turns(ASKED), "completion": [last(SAID)], "label": True},
    )
]
KINDS: dict[str, list[Kind]] = {"conversations": ["conversations"], "preferences": ["preferences", "thumbs"]}


def read(kinds: list[Kind], tmp_path: Path, *rows: Any) -> Any:
    return load_rows(kinds, write_jsonl(tmp_path / "a.jsonl", list(rows)), 0, 0, seed=0)


@pytest.mark.parametrize(("name", "row", "expected"), CONVERSATIONS)
def test_conversations_of_any_shape(tmp_path: Path, name: str, row: Row, expected: Row) -> None:
    found = read(KINDS["conversations"], tmp_path, row)
    assert (found.format, found.kind, found.train) == (name, "conversations", [expected])


@pytest.mark.parametrize(("name", "row", "expected"), [*PREFERENCES, *THUMBS])
def test_preferences_of_any_shape(tmp_path: Path, name: str, row: Row, expected: Row) -> None:
    found = read(KINDS["preferences"], tmp_path, row)
    assert (found.format, found.train) == (name, [expected])
    assert found.kind == ("thumbs" if "label" in row else "preferences")


def test_a_json_list_is_read_as_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([row for _, row, _ in CONVERSATIONS[2:5]]))
    assert len(load_rows(["conversations"], str(tmp_path / "a.json"), 0, 0, seed=0).train) == 3


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("conversations", {"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs, which `python -m training.dpo"),
        ("preferences", {"messages": turns("a", "b")}, "conversations, which `python -m training.sft` takes"),
        ("conversations", {"conversations": [{"from": "humn", "value": "a"}]}, "turn 1 is from 'humn', not one"),
        ("conversations", {"messages": [{"role": "asistant", "content": "a"}]}, "role 'asistant', not one of system"),
        ("conversations", {"conversations": [{"role": "user"}]}, "without from and value"),
        ("conversations", {"instruction": "a", "output": None}, "its output is None and not text"),
        (
            "preferences",
            {"prompt": [last("b")], "chosen": turns("a"), "rejected": [last("c")]},
            "its prompt is what an assistant says and its chosen what a user says: are columns swapped",
        ),
        ("preferences", {"chosen": "b", "rejected": "c"}, r"its chosen is text that does not begin with '.n.nHuman:'"),
        ("preferences", {"chosen": turns("a", "b"), "rejected": turns("c", "d")}, "part at turn 1, where user and"),
        ("preferences", {"prompt": "a", "completion": "b", "label": "good"}, "its label is 'good' and not true"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str, row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        read(KINDS[kind], tmp_path, row)
