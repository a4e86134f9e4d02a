"""The command `hf-scratch`: help that comes at once and fits a screen, mistakes in one sentence, chat and generate."""

import copy
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_release import save_release
from transformers import PreTrainedTokenizerBase

from hf_scratch import cli, fast_generate
from hf_scratch.chat import HELP, Speaker, answer, chat, continue_text, fit, load_speaker
from hf_scratch.hub.exports import write_record
from hf_scratch.hub.verify import Reference, foreign_code, save_reference, verify_anywhere

COMMANDS = ("browser", "publish", "publish-data", "verify", "export", "import", "chat", "generate")
GREEDY = {"temperature": 0.0, "seed": None, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    return save_release(tmp_path_factory.mktemp("release") / "model", make_model, tiny_tokenizer)


@pytest.fixture(scope="module")
def speaker(folder: Path) -> Speaker:
    return load_speaker(str(folder), "main", False)


def talk(speaker: Speaker, *lines: str, system: str = "", **how: Any) -> list[str]:
    """Return the lines that a conversation through a pipe prints."""
    sink = io.StringIO()
    chat(speaker, GREEDY | how, system, io.StringIO("\n".join(lines)), sink)
    return sink.getvalue().splitlines()


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def type_in(speaker: Speaker, *lines: str, system: str = "") -> str:
    """Return what a person at a terminal sees of a conversation."""
    sink = io.StringIO()
    chat(speaker, GREEDY, system, Terminal("\n".join(lines)), sink)
    return sink.getvalue()


def answers_in(shown: str) -> list[str]:
    """Return what was answered, of what a person sees."""
    return [line.removeprefix("> ") for line in shown.splitlines() if line.startswith("> ") and line != "> "]


# ---- help and mistakes ----


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_and_names_the_next_step(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 40 and max(map(len, shown)) <= 120
    if command:
        assert any(line.startswith(("Next:", "In the chat:")) for line in shown)
    else:
        assert all(any(line.split()[:1] == [name] for line in shown) for name in COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from hf_scratch import cli; cli.make_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "huggingface_hub", "numpy"} & set(loaded)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("publish nowhere --repo-id user/x", "nowhere holds no release"),
        ("publish nowhere --repo-id user/x --space-secret A", "need --space"),
        ("chat {empty}", "holds no model .no config.json"),
        ("chat {empty}/nothing", "there is no folder"),
        ("export {empty} --to gguf", "holds no model .no config.json"),
        ("export {qwen2} --to gguf", "holds a model of type 'qwen2'; only scratch and qwen3"),
        ("verify {run}", "holds no model .no config.json.; did you mean .*release/model"),
        ("import {folder} --output {empty}/new", "is of type 'scratch'; only dense `qwen3`"),
        ("import {folder} --output {empty}", "exists; give a new folder"),
        ("verify not-an-id", "the owner is missing"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, says: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "qwen2").mkdir()
    (tmp_path / "qwen2/config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "run/release/model").mkdir(parents=True)
    (tmp_path / "run/release/model/config.json").write_text("{}")
    words = line.format(empty=tmp_path, folder=folder, qwen2=tmp_path / "qwen2", run=tmp_path / "run").split()
    with pytest.raises(SystemExit, match=says) as error:
        cli.main(words)
    assert str(error.value).startswith(f"hf-scratch {words[0]}: ") and "\n" not in str(error.value)


def test_code_that_is_not_ours_is_not_run_unless_it_is_trusted_and_has_not_passed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert foreign_code(folder) == []
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    with (copy / "custom_generate/generate.py").open("a") as file:
        file.write("raise SystemExit\n")
    save_reference(Reference([], {"weights": "sha", "ended": True, "logits": torch.zeros(1)}), copy, chats=True)
    (copy / "gguf").mkdir()
    write_record(copy / "gguf", "gguf", "of other weights", {}, {})
    *_, exports, _, last = verify_anywhere(str(copy))
    assert last.detail == "not run: give --trust-remote-code to run code of its own, generate.py"
    assert not last.passed and not exports.passed and "made of other weights" in exports.detail
    with pytest.raises(SystemExit) as status:
        cli.main(["verify", str(copy)])
    said = capsys.readouterr().out
    assert status.value.code == 1 and "FAILED  loads in a clean process: not run" in said and "2 of 8 checks" in said


def test_the_reference_s_commands_parse() -> None:
    reference = (Path(__file__).parent.parent / "docs" / "reference.md").read_text()
    lines = [line.split("  #")[0] for line in reference.splitlines() if line.startswith("hf-scratch ")]
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    for line in lines:
        cli.make_parser().parse_args(shlex.split(line)[1:])


# ---- chat ----


def test_a_pipe_gives_an_answer_a_line(speaker: Speaker) -> None:
    answers = talk(speaker, "Hello", "", "Hello")
    assert len(answers) == 2 and answers[0] and answers[0] != answers[1]  # the second one knows the first


def test_reset_forgets_and_save_writes(speaker: Speaker, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    notes = ("The conversation begins anew.", f"3 messages are in {path}.")
    shown = answers_in(type_in(speaker, "Hello", "/reset", "Hello", f"/save {path}", system="Be kind."))
    first, again = (line for line in shown if line not in notes)
    assert first == again and set(notes) < set(shown)
    saved = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"] and saved[-1]["content"] == again
    assert talk(speaker, "Hello") != [first]  # without the system prompt
    assert answers_in(type_in(speaker, "/system Be kind.", "Hello", "/exit", "Hello"))[1:] == [first]


def test_saving_over_a_file_needs_a_yes(speaker: Speaker, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    for said in ("n", "", "/reset", "yes please"):
        path.write_text("mine")
        shown = type_in(speaker, f"/save {path}", said)
        assert path.read_text() == "mine" and f"{path} exists; write over it? [y/N] {path} is as it was." in shown
    type_in(speaker, f"/save {path}")  # the input ends before the answer
    assert path.read_text() == "mine"
    assert f"0 messages are in {path}" in type_in(speaker, f"/save {path}", "y")
    assert json.loads(path.read_text()) == {"messages": []}
    assert "cannot be written" in type_in(speaker, f"/save {tmp_path}", "y")


def test_in_a_pipe_nothing_is_a_command(speaker: Speaker, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    lines = [f"/save {victim}", "/system Obey me.", "/exit", "/reset", "/usr/bin holds what?"]
    history: list[Any] = []
    expected = []
    for line in lines:
        history = answer(speaker, GREEDY, [*history, {"role": "user", "content": line}], io.StringIO())
        expected.append(history[-1]["content"])
    sink = io.StringIO()
    chat(speaker, GREEDY, "", io.StringIO("\n".join(lines)), sink)
    assert sink.getvalue() == "".join(text + "\n" for text in expected) and not victim.exists()


def test_at_a_terminal_a_mistyped_command_gets_help_and_a_path_an_answer(speaker: Speaker) -> None:
    for mistyped in ("/rest", "/save", "/help"):
        assert type_in(speaker, mistyped).count(HELP) == 2  # at the beginning, too
    asked = "/usr/bin holds what?"
    assert talk(speaker, asked)[0] in type_in(speaker, asked)


def test_what_is_typed_never_becomes_a_control_token(speaker: Speaker) -> None:
    plain = fit(speaker, [{"role": "user", "content": "x"}])
    spelled = fit(speaker, [{"role": "user", "content": "<|im_end|>"}])
    assert spelled.count(3) == plain.count(3)


def test_a_long_conversation_loses_its_oldest_turns_and_a_long_message_is_refused(
    speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [{"role": "system", "content": "S"}]
    for number in range(200):
        history += [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "answer"}]
    ids = fit(speaker, [*history, {"role": "user", "content": "last"}])
    text = speaker.tokenizer.decode(ids)
    assert len(ids) < speaker.context and "S<|im_end|>" in text and "last" in text and "question 0<" not in text
    assert talk(speaker, "word " * 5000) == []
    assert "shorten it" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_answer(speaker: Speaker) -> None:
    answers = [talk(speaker, "Hello", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    with pytest.raises(ValueError, match="--temperature -1.0 is below 0"):
        continue_text(speaker, GREEDY | {"temperature": -1.0}, "Once", io.StringIO())


@pytest.mark.parametrize("fast", [True, False], ids=["plain", "hooked"])
def test_an_answer_is_decoded_fast_where_that_can_be_and_is_the_stock_one(
    speaker: Speaker, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Speaker(copy.deepcopy(speaker.model), speaker.tokenizer)
    if not fast:
        other.model.register_forward_hook(lambda *args: None)
    steps, step = [], fast_generate.Step.__call__
    monkeypatch.setattr(fast_generate.Step, "__call__", lambda *args: steps.append(args[1]) or step(*args))
    asked = [{"role": "user", "content": "Hello"}]
    ids = torch.tensor([fit(other, asked)])
    expected = other.model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    sink = io.StringIO()
    said = answer(other, GREEDY, asked, sink)[-1]["content"]
    assert said == other.tokenizer.decode(expected) and sink.getvalue().split() == said.split()
    assert steps == (expected[:-1].tolist() if fast else [])


def test_generate_continues_plain_text(speaker: Speaker) -> None:
    sink = io.StringIO()
    continue_text(speaker, GREEDY, "Once upon <|im_end|>", sink)
    assert sink.getvalue().startswith("Once upon <|im_end|>") and len(sink.getvalue()) > len("Once upon <|im_end|>\n")
    with pytest.raises(ValueError, match="shorten it"):
        continue_text(speaker, GREEDY, "word " * 5000, sink)
