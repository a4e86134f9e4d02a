"""Questions of a file: what counts as right, and what the report says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_align import write_jsonl
from tiny_run import make_base, make_tokenizer_and_data

from training import eval_model
from training.evaluation.answers import Answer
from training.evaluation.questions import is_whole, read_questions, score_questions
from training.evaluation.task_scores import question_rows

ROWS: list[dict[str, Any]] = [
    {"kind": "who", "prompt": "Who lost a kite?", "answers": ["The fox.", "A fox."], "chance": 0.5},
    {"kind": "who", "prompt": [{"role": "user", "content": "Who came?"}], "answers": ["The owl."], "chance": 0.25},
    {"kind": "go on", "prompt": "Go on: The fox went home and slept.", "answers": []},
]
WHOLE = "In the morning the fox woke up and looked for the owl. “Where are you?”"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (WHOLE, True),
        ("In the morning the fox woke up and looked for the", False),
        ("He slept.", False),
        ("The owl came to see him, the owl came to see him, the owl came to see him.", False),
        ("Then the fox went home and slept. The fox went home and slept.", False),
    ],
)
def test_a_whole_text_ends_with_a_sentence_and_repeats_nothing(text: str, whole: bool) -> None:
    assert is_whole(text, "The fox went home and slept.") == whole


def test_an_answer_is_right_word_for_word_and_chance_is_named_unless_it_is_beaten(tmp_path: Path) -> None:
    questions = read_questions(write_jsonl(tmp_path / "q.jsonl", ROWS))
    who, came, go_on = questions
    assert who.messages == [{"role": "user", "content": "Who lost a kite?"}]
    assert who.is_right(Answer(" A fox.\n", 3, True), set())
    assert not who.is_right(Answer("A fox", 3, True), set())
    assert go_on.is_right(Answer(WHOLE, 20, True), set())
    assert not go_on.is_right(Answer(WHOLE, 20, False), set())  # cut off at the longest answer
    assert not go_on.is_right(Answer(WHOLE, 20, True), {WHOLE})  # what answers something else
    said = Answer("", 1, True)
    found = score_questions(questions, [(said, True), (said, False), (said, True)])
    assert (found["who"]["count"], found["who"]["n"], found["who"]["chance"]) == (1, 2, 0.375)
    assert found["go on"]["chance"] is None
    rows = question_rows([{}, {"questions": {"greedy": found, "sampled": found}}])
    assert rows["Questions: who, sampled"] == ["", "50.0 % (9.5 to 90.5; chance 37.5)"]
    assert rows["Questions: go on"][1].startswith("100.0 % (20.7 to 100.0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "who", "prompt": "Who?"}, "line 1: it has not kind, prompt and answers; expected"),
        ({"kind": "who", "prompt": "Who?", "answers": "Tom."}, "its answers are no list of texts"),
        ({"kind": "who", "prompt": "Who?", "answers": ["Tom."], "chance": 3}, "its chance no number between 0 and 1"),
        ({"kind": "who", "prompt": [], "answers": ["Tom."]}, "its prompt is .* and not a list of messages"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions(write_jsonl(tmp_path / "q.jsonl", [row]))


@pytest.mark.slow
def test_models_are_asked_greedily_and_sampled_and_compared(tmp_path: Path) -> None:
    make_tokenizer_and_data(tmp_path)
    make_base(tmp_path, "base")
    file = write_jsonl(tmp_path / "q.jsonl", ROWS)
    models = [f"{name}={tmp_path / 'base' / 'model'}" for name in ("base", "same")]
    words = ["--questions", file, "--num_prompts", "0", "--max_new_tokens", "12", "--num_samples", "1"]
    eval_model.main(["--output_dir", str(tmp_path / "eval"), "--models", *models, *words])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    found = results["models"]["base"]["questions"]
    assert {how: {kind: one["n"] for kind, one in kinds.items()} for how, kinds in found.items()} == dict.fromkeys(
        ("greedy", "sampled"), {"who": 2, "go on": 1}
    )
    assert results["paired"][0]["turns"]["n"] == 3 and "stories" not in results["models"]["base"]
    assert [sample["prompt"] for sample in results["samples"]] == ["Who lost a kite?", ROWS[2]["prompt"]]
    report = (tmp_path / "eval/report.md").read_text()
    assert "| Questions: who, sampled | 0.0 % (0.0 to 65.8; chance 37.5) |" in report
    assert "- Questions: 3 from a file." in report
    lines = [json.loads(line) for line in (tmp_path / "eval/answers.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 3 and {line["question"] for line in lines} == {"who", "go on"}
    assert "Questions: go on" in (tmp_path / "eval/report.html").read_text()
