"""The data check counts what is wrong with the rows, stops where nothing could be learnt, and is in the record."""

from pathlib import Path
from typing import Any

import pytest
from tiny_align import CHATS, EVIL, PAIRS, THUMBS, pair, run_stage, turns, write_jsonl
from transformers import PreTrainedTokenizerBase

from training import dpo, sft
from training.chat.check import Finding, check_data, refuse_errors, table
from training.chat.formats import Kind, Row
from training.chat.rows import Loaded
from training.chat.tokenize import tokenize
from training.stage.files import read_json


def check(
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    rows: list[Row],
    held_out: list[Row] | None = None,
    length: int = 60,
) -> dict[str, Finding]:
    loaded = Loaded(kind, "messages", rows, held_out or [])
    findings = check_data(tokenizer, tokenize(tokenizer, kind, rows, length), loaded, length)
    assert len(table(findings).splitlines()) == len(findings) + 1
    return {finding.what: finding for finding in findings}


def test_good_rows_have_no_warning(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    for kind, rows in (("conversations", CHATS), ("preferences", PAIRS), ("thumbs", THUMBS)):
        found = check(tiny_tokenizer, kind, rows, length=100)
        worth = [what for what, finding in found.items() if finding.level]
        assert worth == (["chosen longer than rejected"] if kind == "preferences" else [])


def test_what_is_wrong_with_conversations_is_counted(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"messages": turns("a", "b")},
        {"messages": turns("a", "b")},
        {"messages": turns("", "b")},
        {"messages": turns("c", " ")},
        {"messages": [*turns("d"), *turns("e", "f")]},
        {"messages": turns("g", "h", "i")},
        {"messages": turns("j", EVIL)},
        {"messages": turns("k", "long" * 60)},
        {"messages": turns("long" * 60, "l")},
    ]
    found = check(tiny_tokenizer, "conversations", rows, [rows[0], {"messages": turns("new", "b")}])
    counts = {what: finding.found for what, finding in found.items() if finding.level == "warning"}
    assert counts == {
        "duplicate rows": "1 of 9",
        "rows with an empty turn of user or system": "1 of 9",
        "rows with an empty answer": "1 of 9",
        "rows with turns out of order": "1 of 9",
        "rows that do not end with an answer": "1 of 9",
        "rows longer than max_length=60": "1 of 9",
        "answers cut before their end token": "1 of 9",
        "rows dropped": "1 of 9",
        "rows with a control token's spelling": "1 of 9",
        "held-out prompts that training has too": "1 of 2",
    }
    assert found["tokens a row"].found.startswith("p50 ")


def test_what_is_wrong_with_pairs_is_counted(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [pair("a", "same", "same"), *(pair(f"b {i}", "a longer answer", "short") for i in range(3))]
    found = check(tiny_tokenizer, "preferences", [*rows, rows[1] | {"later_turns": 2}], length=100)
    assert found["chosen equal to rejected"].found == "1 of 5"
    assert found["chats that go on after they part"].found == "1 of 5"
    bias = found["chosen longer than rejected"]
    assert bias.found.startswith("in 80%, by +") and "learn to answer longer" in bias.note


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("preferences", [pair("a", "b", "b")], r"chosen equal to rejected: 1 of 1 \(nothing is learnt"),
        ("conversations", [{"messages": turns("a", "")}], "rows with an empty answer: 1 of 1"),
        ("thumbs", THUMBS[::2], "thumbs up: 8 of 8 .both thumbs are needed"),
    ],
)
def test_rows_that_teach_nothing_stop_the_run(
    tiny_tokenizer: PreTrainedTokenizerBase, kind: Kind, rows: list[Row], message: str
) -> None:
    found = check(tiny_tokenizer, kind, rows, length=100)
    with pytest.raises(ValueError, match=f"the data cannot be trained on: .*{message}"):
        refuse_errors(list(found.values()))


@pytest.mark.parametrize(("main", "rows"), [(sft.main, CHATS), (dpo.main, PAIRS), (dpo.main, THUMBS)])
def test_inspect_shows_and_trains_nothing(
    main: Any, rows: list[Row], base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    main(["--model", base, "--data", data, "--max_length", "96", "--inspect"])
    printed = capsys.readouterr().out
    assert "The data:" in printed and "duplicate rows" in printed and "<|im_start|>assistant" in printed
    assert "    loss | " in printed and " no loss | '<|im_start|>' " in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "rows.jsonl"]


def test_the_table_is_in_the_record(base: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*CHATS, CHATS[0]])
    run_stage(sft.main, base, data, tmp_path / "run", max_steps=1)
    found = {line["what"]: line for line in read_json(tmp_path / "run" / "stage.json")["data"]}
    assert found["duplicate rows"] == {
        "what": "duplicate rows",
        "found": "1 of 9",
        "level": "warning",
        "note": "kept",
    }


def test_what_is_left_out_and_not_used_is_told(base: str, tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "fox", "reasoning_content": "hm"}
    rows = [
        *({"id": i, **row} for i, row in enumerate(CHATS)),
        {"messages": turns("a", "b")[::-1]},
        {"messages": [*turns("a"), {"role": "system", "content": "our template refuses this"}, *turns("b", "c")]},
        {"messages": [*turns("d"), thought | {"name": "Tom"}]},
    ]
    run_stage(sft.main, base, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run", max_steps=1)
    found = {line["what"]: line for line in read_json(tmp_path / "run" / "stage.json")["data"]}
    assert found["rows left out: the assistant begins"]["found"] == "1 of 11"
    assert found["rows that the chat template refuses"]["found"] == "1 of 10"
    assert found["rows with reasoning_content"]["found"] == "1 of 10"
    assert found["not used"]["found"] == "id, messages: name"


def test_pairs_that_the_template_refuses_are_counted(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    refused = pair("a", "b", "c")
    refused["prompt"] = [*turns("a"), {"role": "system", "content": "late"}, *turns("b")]
    assert check(tiny_tokenizer, "preferences", [refused, *PAIRS])["rows that the chat template refuses"].found == (
        "1 of 9"
    )
    with pytest.raises(ValueError, match="the model's chat template refuses a conversation of this data: a system"):
        check(tiny_tokenizer, "preferences", [refused])


def test_held_out_rows_without_an_answer_are_told(base: str, tmp_path: Path) -> None:
    rows = [{"messages": turns(str(i))} for i in range(2)]
    with pytest.raises(SystemExit, match="sft: none of the 1 conversations has an answer"):
        run_stage(sft.main, base, write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "run", eval_examples=1)
    # Which row is held out is drawn by the seed: the other one is long.
    rows = [{"messages": turns("a", "b")}, {"messages": turns("a" * 200, "b")}]
    data = write_jsonl(tmp_path / "b.jsonl", rows)
    with pytest.raises(SystemExit, match="sft: (the held-out rows cannot be evaluated on: )?none of the 1 conv"):
        for seed in range(9):
            run_stage(sft.main, base, data, tmp_path / f"run{seed}", eval_examples=1, max_steps=1, seed=seed)


def test_a_stage_says_that_it_needs_a_folder(base: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", CHATS)
    with pytest.raises(SystemExit, match="sft: --output_dir is missing"):
        sft.main(["--model", base, "--data", data])
