"""Every usual shape of chat data is told by its columns and read as what it means, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_align import pair, turns, write_jsonl

from training.chat.formats import Kind, Row
from training.chat.rows import load_rows

ASKED, SAID, UNSAID = "Who has the kite?", "The red fox.", "No one."
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: " + ASKED + "\n\nAssistant: "
TALK = turns("a", "b", ASKED)
SHARE = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate([ASKED, SAID])]


def last(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Who has "}, {"type": "text", "text": "the kite?"}]}

CONVERSATIONS: list[tuple[str, Row, Row]] = [
    ("messages", {"messages": turns(ASKED, SAID)}, {"messages": turns(ASKED, SAID)}),
    ("ShareGPT", {"conversations": SHARE}, {"messages": turns(ASKED, SAID)}),
    ("Alpaca", {"instruction": ASKED, "input": "", "output": SAID}, {"messages": turns(ASKED, SAID)}),
    ("Alpaca", {"instruction": "Say it.", "input": "A", "output": "B"}, {"messages": turns("Say it.\n\nA", "B")}),
    ("Alpaca", {"instruction": ASKED, "output": SAID}, {"messages": turns(ASKED, SAID)}),
    ("ShareGPT", {"conversations": turns(ASKED, SAID)}, {"messages": turns(ASKED, SAID)}),
    ("ShareGPT", {"conversations": SHARE, "system": "s"}, {"messages": [SYSTEM, *turns(ASKED, SAID)]}),
    ("messages", {"messages": turns(ASKED, SAID), "system": "s"}, {"messages": [SYSTEM, *turns(ASKED, SAID)]}),
    ("messages", {"messages": [SYSTEM, *turns(ASKED)], "system": "s"}, {"messages": [SYSTEM, *turns(ASKED)]}),
    ("messages", {"messages": [PARTS, last(SAID)]}, {"messages": turns(ASKED, SAID)}),
    (
        "messages",
        {"messages": [*turns("a"), last("b") | {"weight": 0}, *turns(ASKED), last(SAID) | {"weight": 1}]},
        {"messages": [*turns("a"), last("b") | {"weight": 0}, *turns(ASKED, SAID)]},
    ),
    (
        "messages",
        {"messages": [*turns(ASKED), last(SAID) | {"reasoning_content": "hm"}]},
        {"messages": [*turns(ASKED), last(SAID) | {"reasoning_content": "hm"}]},
    ),
    (
        "Alpaca",
        {"instruction": "Say it.", "context": "A", "response": "B", "system": "s"},
        {"messages": [SYSTEM, *turns("Say it.\n\nA", "B")]},
    ),
    *(
        (
            "prompt and completion",
            {asked: ASKED, answered: SAID, "system_prompt": "s"},
            {"messages": [SYSTEM, *turns(ASKED, SAID)], "last_answer_only": True},
        )
        for asked, answered in (("question", "response"), ("question", "answer"), ("prompt", "response"))
    ),
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
    *(
        (
            "prompt, chosen and rejected",
            asked | {"system": "s", "chosen": SAID, "rejected": UNSAID},
            pair(ASKED, SAID, UNSAID) | {"prompt": [SYSTEM, *turns(ASKED)]},
        )
        for asked in ({"question": ASKED}, {"prompt": ASKED}, {"instruction": ASKED, "input": ""})
    ),
    (
        "prompt, chosen and rejected",
        {"instruction": "Say it.", "input": "A", "chosen": SAID, "rejected": UNSAID},
        pair("Say it.\n\nA", SAID, UNSAID),
    ),
    (
        "prompt, chosen and rejected",
        {"conversations": SHARE[:1], "chosen": SHARE[1], "rejected": {"from": "gpt", "value": UNSAID}},
        pair(ASKED, SAID, UNSAID),
    ),
    (
        "prompt, chosen and rejected",
        {"prompt": ASKED, "system": "s", "chosen": turns(ASKED, SAID), "rejected": turns(ASKED, UNSAID)},
        pair(ASKED, SAID, UNSAID) | {"prompt": [SYSTEM, *turns(ASKED)]},
    ),
    (
        "chosen and rejected chats",
        {"system": "s", "chosen": turns(ASKED, SAID), "rejected": turns(ASKED, UNSAID)},
        pair(ASKED, SAID, UNSAID) | {"prompt": [SYSTEM, *turns(ASKED)], "later_turns": 0},
    ),
]
THUMBS = [
    (
        "prompt, completion and thumb",
        {"prompt": ASKED, "completion": SAID, "label": True},
        {"prompt": turns(ASKED), "completion": [last(SAID)], "label": True},
    ),
    (
        "prompt, completion and thumb",
        {"question": ASKED, "response": SAID, "label": True, "system": "s"},
        {"prompt": [SYSTEM, *turns(ASKED)], "completion": [last(SAID)], "label": True},
    ),
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
        ("conversations", {"messages": turns("a", "b"), "system": 3}, "its system is 3 and not text"),
        ("conversations", {"messages": [*turns("a"), last("b") | {"weight": 0.5}]}, "the weight 0.5; only 0 and 1"),
        ("conversations", {"messages": [{"role": "user", "content": 7}]}, "without role and content"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str, row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        read(KINDS[kind], tmp_path, row)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("conversations", {"conversations": SHARE[::-1]}, "the assistant begins"),
        ("conversations", {"conversations": [*SHARE, {"from": "tool", "value": "3"}]}, "a tool speaks or is called"),
        ("conversations", {"messages": [*turns("a"), {"role": "tool", "content": "3"}]}, "a tool speaks or is called"),
        (
            "conversations",
            {"messages": [*turns("a"), last("b") | {"tool_calls": [{"function": {"name": "add"}}]}]},
            "a tool speaks or is called",
        ),
        ("conversations", {"messages": [{"role": "user", "content": None}, last("b")]}, "a message without content"),
        ("conversations", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part that is no text"),
        ("conversations", {"messages": turns("a", "\ud83d")}, "half of a surrogate pair"),
        ("conversations", {"messages": [SYSTEM, *turns("a", "b")], "system": "t"}, "two system messages"),
        ("preferences", {"prompt": [last("b")], "chosen": "a", "rejected": "c"}, "the assistant begins"),
        (
            "preferences",
            {"chosen": turns("a", "b"), "rejected": turns("c", "d")},
            "chosen and rejected differ before the answer",
        ),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_trained_on_is_left_out_and_counted(
    tmp_path: Path, kind: str, row: Row, reason: str
) -> None:
    good: Row = {"messages": turns("a", "b")} | {"conversations": SHARE, "prompt": "a", "chosen": "b", "rejected": "c"}
    good = {column: good[column] for column in row if column in good}
    if "chosen" in row and "prompt" not in row:
        good = {"chosen": turns("a", "b"), "rejected": turns("a", "c")}
    found = read(KINDS[kind], tmp_path, good, row, good, row)
    assert len(found.train) == 2 and found.left_out == {reason: 2}
    with pytest.raises(ValueError, match="none of the 1 rows can be trained on: .*line 1: "):
        read(KINDS[kind], tmp_path, row)


def test_what_nobody_looks_at_is_named(tmp_path: Path) -> None:
    message = {"role": "user", "content": "a", "name": "Tom", "tool_calls": None}
    row = {"messages": [message, last("b")], "id": 3, "tools": [], "history": [["x", "y"]], "system": "s"}
    assert read(KINDS["conversations"], tmp_path, row).unused == {"id", "history", "messages: name"}
    alpaca = {"instruction": "a", "input": "b", "output": "c", "text": "abc"}
    assert read(KINDS["conversations"], tmp_path, alpaca).unused == {"text"}
    assert read(KINDS["preferences"], tmp_path, pair("a", "b", "c") | {"input": "d"}).unused == {"input"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "A.JSON", "A.JSONL"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_and_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str, mark: str) -> None:
    rows = [{"messages": turns(f"a\u2028{i}", "b")} for i in range(3)]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False), lines):
        (tmp_path / name).write_text(mark + text, encoding="utf-8")
        found = load_rows(["conversations"], str(tmp_path / name), 0, 0, seed=0).train
        assert sorted(found, key=str) == rows
