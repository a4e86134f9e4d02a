"""Other people's code runs by consent only, and then without network and not for ever."""

import copy
import json
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_release import save_release
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch.chat import load_speaker
from hf_scratch.clean_process import tokens_without_row
from hf_scratch.export.original import load_original
from hf_scratch.hub import verify
from hf_scratch.hub.check import Check
from hf_scratch.hub.files import check_files
from hf_scratch.hub.verify import find_cut_off, foreign_code, verify_anywhere
from training import release
from training.alignment.stage import load_model, load_weights
from training.evaluation import measure

CODE_CHECK = "the code that config.json names is there"


@pytest.fixture(scope="module")
def ours(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    return save_release(tmp_path_factory.mktemp("release") / "model", make_model, tiny_tokenizer)


@pytest.fixture
def folder(ours: Path, tmp_path: Path) -> Path:
    """A copy of a model's folder to tamper with."""
    return Path(shutil.copytree(ours, tmp_path / "model"))


def change(path: Path, **settings: Any) -> None:
    """Set settings in a file of them."""
    there = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(there | settings))


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


# ---- what is foreign ----


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "{evil}--evil.Class"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "somebody/model--modeling_scratch.ScratchForCausalLM"}}),
        ("config.json", {"auto_map": {"AutoConfig": "{evil}/evil.Class"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "{evil}--evil.Class"}}}),
        ("config.json", {"custom_pipelines": {"chat": {"impl": "{evil}--evil.Class", "pt": ["AutoModel"]}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "{evil}--evil.Class"]}}),
        ("tokenizer_config.json", {"auto_map": ["{evil}--evil.Class", None]}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "{evil}--evil.Class"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "../evil--evil.Class"}}),
        ("generation_config.json", {"custom_generate": "{evil}"}),
    ],
)
def test_code_that_lies_elsewhere_is_foreign_and_is_never_run(
    folder: Path, tmp_path: Path, file: str, settings: dict[str, Any]
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    named = json.loads(json.dumps(settings).replace("{evil}", str(evil)))
    if "auto_map" in named and file == "config.json":
        named["auto_map"] = json.loads((folder / file).read_text())["auto_map"] | named["auto_map"]
    change(folder / file, **named)
    (found,) = foreign_code(folder)
    assert found.startswith(f"{file} names ")
    for trusted in (False, True):  # whoever loads it as a stranger has no such code
        assert failed(verify_anywhere(str(folder), trust_remote_code=trusted))[CODE_CHECK] == found
    assert "not run: give --trust-remote-code" in verify_anywhere(str(folder))[-1].detail
    assert not (tmp_path / "ran").exists()


def test_code_behind_a_link_is_foreign(folder: Path, tmp_path: Path) -> None:
    (folder / "custom_generate").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/generate.py").write_text("raise SystemExit")
    (folder / "custom_generate").symlink_to(tmp_path / "elsewhere")
    assert foreign_code(folder) == ["custom_generate is a link to a folder"]
    (folder / "custom_generate").unlink()
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").symlink_to(tmp_path / "elsewhere/generate.py")
    assert foreign_code(folder) == ["generate.py"]


def test_our_own_code_is_not_foreign_in_the_hub_s_cache_either(ours: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(path for path in ours.rglob("*") if path.is_file())):
        link = tmp_path / "snapshot" / path.relative_to(ours)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = shutil.copy(path, tmp_path / f"blob-{number}")
        link.symlink_to(blob)
    change(tmp_path / "snapshot/config.json", attention={"impl": "triton"})
    for place in (ours, tmp_path / "snapshot"):
        assert foreign_code(place) == [] and failed(check_files(place)) == {}


def test_code_of_a_tokenizer_that_is_not_there_is_missed(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    assert failed(check_files(folder)) == {CODE_CHECK: "tokenization_own.py"}


@pytest.mark.parametrize("content", ["{", "[1]", '"text"'])
def test_settings_that_cannot_be_read_are_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json .*; restore it"):
        verify_anywhere(str(folder))


# ---- what runs is kept in ----


def add_code(folder: Path, code: str) -> None:
    """Make the model's file do something more when it is loaded."""
    with (folder / "modeling_scratch.py").open("a") as file:
        file.write(code)


CALL = """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5).sendall(b"secret")
except OSError:
    pass
"""


@pytest.mark.slow
def test_trusted_code_reaches_no_network_where_the_system_can_cut_it_off(folder: Path) -> None:
    if not find_cut_off():
        pytest.skip("neither unshare nor bwrap works here")
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = threading.Thread(target=lambda: heard.append(server.accept()), daemon=True)
        listener.start()
        add_code(folder, CALL.format(port=server.getsockname()[1]))
        checks = verify_anywhere(str(folder), trust_remote_code=True)
        assert not heard and failed(checks) == {}
        assert "the network is cut off" in {check.name for check in checks}
        socket.create_connection(server.getsockname()).close()  # the server was there to be reached
        listener.join(timeout=10)
    assert len(heard) == 1


@pytest.mark.slow
def test_where_the_network_cannot_be_cut_off_nothing_of_the_kind_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CUT_OFF", (("unshare", "--no-such-option"), ("no-such-program",)))
    assert find_cut_off() == ()
    add_code(folder, "raise RuntimeError('no model')")
    checks = {check.name: check for check in verify_anywhere(str(folder), trust_remote_code=True)}
    assert "the network is not" in checks["the Hub is switched off"].detail
    assert "the network is cut off" not in checks and "no model" in failed(list(checks.values())).popitem()[1]


@pytest.mark.slow
@pytest.mark.parametrize("cut_off", [True, False])
def test_code_that_does_not_end_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, cut_off: bool) -> None:
    monkeypatch.setattr(verify, "SECONDS", 6)
    if not cut_off:
        monkeypatch.setattr(verify, "CUT_OFF", ())
    # A process that it leaves behind holds on to what the first one writes to.
    add_code(folder, "import subprocess, time\nsubprocess.Popen(['sleep', '30'])\ntime.sleep(30)\n")
    checks = verify_anywhere(str(folder), trust_remote_code=True)
    assert failed(checks) == {"the clean process ends": "stopped after 6 s"}


@pytest.mark.slow
def test_code_that_ends_the_process_has_not_passed(folder: Path) -> None:
    add_code(folder, "import os\nos._exit(0)\n")
    assert "the clean process ends" in failed(verify_anywhere(str(folder), trust_remote_code=True))


# ---- the tokenizer ----


def add_tokens(folder: Path, *tokens: AddedToken) -> None:
    """Save the tokenizer with more tokens than the model has rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_a_tokenizer_that_is_larger_than_the_model_is_found(folder: Path) -> None:
    add_tokens(folder, AddedToken("zebra"), AddedToken("<think>"), AddedToken("<|picture|>", special=True))
    assert failed(verify.verify(folder)) == {
        "every token has a row in the model": "ValueError: 2 have none, '<think>' for one"
    }


def test_a_tokenizer_that_is_larger_than_the_model_is_refused_before_it_is_used(folder: Path) -> None:
    add_tokens(folder, AddedToken("<|picture|>", special=True))  # which nothing writes
    load_speaker(str(folder), "main", False)
    add_tokens(folder, AddedToken("zebra"))
    for use in (lambda: load_speaker(str(folder), "main", False), lambda: load_original(folder, None),
                lambda: load_model(str(folder)), lambda: measure.load(str(folder))):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"has 1 tokens .* no row for, 'zebra' for one; .*resize_token_embeddings"
        ):
            use()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|picture|>"
    assert tokens_without_row(tokenizer, load_weights(str(folder))) == ["<|picture|>", "zebra"]


# ---- what people write ----


@pytest.mark.slow
def test_a_message_that_becomes_control_tokens_is_found_and_a_release_prevents_it(
    ours: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As of reasoning models, whose `<think>` is not special."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary["added_tokens"].append({
        "id": 319, "content": "<think>", "special": False, "normalized": False, "lstrip": False, "rstrip": False,
        "single_word": False,
    })  # fmt: skip
    shutil.copytree(ours, tmp_path / "model", ignore=shutil.ignore_patterns("custom_generate"))
    learnt = next(token for token, number in vocabulary["model"]["vocab"].items() if number == 319)
    del vocabulary["model"]["vocab"][learnt]
    vocabulary["model"]["merges"] = [pair for pair in vocabulary["model"]["merges"] if "".join(pair) != learnt]
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(vocabulary))
    (detail,) = failed(verify.verify(tmp_path / "model")).values()
    assert "a message that spells them puts <think> into the prompt" in detail
    release.copy_model(tmp_path / "model", tmp_path / "released")
    assert failed(verify.verify(tmp_path / "released")) == {}
