"""The Hub fails in every way it knows, and the remote is the old state or the new one, never between.

A real HTTP server on loopback answers the unmodified client in a process of its own; see hub_server.py.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import READER, WRITER, HubServer

Run = Callable[..., subprocess.CompletedProcess[str]]

WEIGHTS = 12_000_000  # bytes: more than git takes in a commit
SETUP = """
import sys
from pathlib import Path
from hf_scratch.hub import client as hub
from hf_scratch.hub.client import *
hub.WAITS = (0.01, 0.01, 0.01)
api, target = HfApi(), Target("user/name")
def push(title="first", **other):
    files = {"model.safetensors": Path(sys.argv[1]), "config.json": b"{}"} | other
    return commit(api, target, files, title)
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that must go through LFS."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(WEIGHTS))
    return path


@pytest.fixture
def push(run_online: Run, weights: Path) -> Callable[..., str]:
    """Run code that pushes, and return what it printed."""

    def run(code: str, **environment: str) -> str:
        result = run_online("-c", SETUP + code, weights, **environment)
        assert result.returncode == 0, result.stderr
        assert WRITER not in result.stdout + result.stderr
        return result.stdout.strip()

    return run


def titles(hub: HubServer, branch: str = "main") -> list[str]:
    repo = hub.repos["model", "user/name"]
    return [repo.commits[oid].title for oid in repo.history[branch]]


def test_one_commit_and_none_when_nothing_changed(hub: HubServer, push: Callable[..., str], weights: Path) -> None:
    first, again = push(
        "ensure_repo(api, target); print(push()); ensure_repo(api, target); print(push('again'))"
    ).split()
    assert titles(hub) == ["initial commit", "first"] and first == again
    assert hub.files("user/name")["model.safetensors"] == weights.read_bytes()
    assert sum("PUT /lfs" in request for request in hub.requests) == 1


def test_what_a_new_release_lacks_goes_and_what_others_added_stays(hub: HubServer, push: Callable[..., str]) -> None:
    old = "{'old.py': b'', 'LICENSE': b'', 'gguf/old.gguf': b'GGUF', 'training_record/sft/stage.json': b'{}'}"
    push(f"ensure_repo(api, target); push(**{old})")
    repo = hub.repos["model", "user/name"]
    names = ("notes.md", "handler.py", "adapter_model.safetensors", ".eval_results/gsm8k.yaml", "gguf/their.gguf")
    theirs = dict.fromkeys(names, b"theirs")
    hub.commit(repo, "main", "by hand", "", repo.find("main").files | theirs)
    push("push('second', **{'new.py': b'pass'})")
    ours = {".gitattributes", "new.py", "config.json", "model.safetensors"}
    assert set(hub.files("user/name")) == ours | set(theirs)
    push("push('third', **{'notes.md': b'ours'}); push('fourth')")  # what we overwrote is ours
    assert set(hub.files("user/name")) == ours - {"new.py"} | set(theirs) - {"notes.md"}
    assert titles(hub) == ["initial commit", "first", "by hand", "second", "third", "fourth"]


def test_other_weights_do_not_stay_beside_the_new_ones(hub: HubServer, push: Callable[..., str]) -> None:
    """Whoever put them there: `from_pretrained` would load them."""
    repo = hub.create("user/name")
    names = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "vision/model.safetensors")
    hub.commit(repo, "main", "old", "", dict.fromkeys(names, b"old"))
    push("push()")
    assert set(hub.files("user/name")) == {"config.json", "model.safetensors", "vision/model.safetensors"}


FAULTS = [
    ("POST /api/repos/create", 500),
    ("POST /api/repos/create", "lose"),
    ("POST /api/validate-yaml", "drop"),
    ("GET /api/models/user/name/revision", 503),
    ("POST .*/preupload", "drop"),
    ("POST .*/objects/batch", 502),
    ("PUT /lfs", "drop"),
    ("PUT /lfs", "lose"),
    ("POST .*/commit/main", 500),
    ("POST .*/commit/main", "drop"),
    ("POST .*/commit/main", "lose"),
    ("GET .*/tree/", 500),
]


@pytest.mark.parametrize(("pattern", "action"), FAULTS, ids=[f"{pattern} {action}" for pattern, action in FAULTS])
@pytest.mark.slow
def test_a_passing_fault_is_survived_with_one_commit(
    hub: HubServer, push: Callable[..., str], pattern: str, action: int | str
) -> None:
    hub.fail(pattern, action, times=2 if isinstance(action, int) else 1)
    push("ensure_repo(api, target); push(**{'README.md': b'---\\nlicense: mit\\n---\\n'})")
    assert titles(hub) == ["initial commit", "first"]
    assert [fault.times for fault in hub.faults] == [0]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubServer, push: Callable[..., str]) -> None:
    hub.fail("POST .*/commit/main", "lose")
    printed = push("ensure_repo(api, target); print(push())")
    assert titles(hub) == ["initial commit", "first"]
    assert printed == hub.repos["model", "user/name"].history["main"][-1]


def test_a_lasting_fault_leaves_nothing_and_the_next_call_goes_on(hub: HubServer, push: Callable[..., str]) -> None:
    hub.fail("POST .*/commit/main", 503, times=4)
    code = "ensure_repo(api, target)\ntry:\n    push()\nexcept HubError as error:\n    print(error)"
    message = push(code)
    assert "nothing was committed" in message and "HTTP 503" in message and "goes on where" in message
    assert titles(hub) == ["initial commit"]
    hub.requests.clear()
    push("push()")
    assert titles(hub) == ["initial commit", "first"]
    assert not any("PUT /lfs" in request for request in hub.requests)  # what had been uploaded is not sent again


def test_a_killed_upload_leaves_nothing_and_the_next_call_goes_on(
    hub: HubServer, run_online: Run, push: Callable[..., str], weights: Path
) -> None:
    hub.create("user/name")
    hub.fail("POST .*/commit/main", "drop")
    killed = "import os, signal; hub.find_commit = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\npush()"
    assert run_online("-c", SETUP + killed, weights).returncode == -9
    assert titles(hub) == ["initial commit"]
    push("push()")
    assert titles(hub) == ["initial commit", "first"]


def test_somebody_else_s_commit_is_not_overwritten(hub: HubServer, push: Callable[..., str]) -> None:
    repo = hub.create("user/name")
    code = """
def race(*args, **kwargs):
    HfApi().create_commit("user/name", [CommitOperationAdd("other", b"")], commit_message="theirs")
    return HfApi.create_commit(api, *args, **kwargs)
api.create_commit = race
try:
    push()
except HubError as error:
    print(error)
"""
    assert "somebody else has changed it meanwhile" in push(code)
    assert [repo.commits[oid].title for oid in repo.history["main"]] == ["initial commit", "theirs"]


@pytest.mark.parametrize(
    ("token", "repo_id", "says"),
    [
        ("hf_" + "x" * 34, "user/name", "HTTP 401, Invalid credentials.*hf auth login"),
        (READER, "user/name", "HTTP 403, You don't have the rights.*write access"),
        (WRITER, "somebody/name", "HTTP 403"),
        (WRITER, "user/no/name", "is not a name that the Hub takes"),
        (WRITER, "user/na--me", "is not a name that the Hub takes"),
        (WRITER, "name", "is not a name that the Hub takes .the owner is missing"),
    ],
)
def test_who_may_not_is_told_why(hub: HubServer, run_online: Run, token: str, repo_id: str, says: str) -> None:
    code = f"""
try:
    check_repo_id({repo_id!r}); ensure_repo(api, Target({repo_id!r}))
except HubError as error:
    print(error)
"""
    result = run_online("-c", SETUP + code, "-", HF_TOKEN=token)
    assert re.search(says, result.stdout), result
    assert token not in result.stdout + result.stderr
    assert hub.repos == {}


@pytest.mark.parametrize("kind", ["model", "space", "dataset"])
def test_what_is_to_be_private_does_not_go_where_anybody_reads(
    hub: HubServer, push: Callable[..., str], kind: str
) -> None:
    hub.create("user/name", kind)
    code = f"""
target = Target("user/name", {kind!r}, "draft")
try:
    ensure_repo(api, target, private=True, **({{"space_sdk": "gradio"}} if target.kind == "space" else {{}}))
except HubError as error:
    print(error)
"""
    assert re.search(r"user/name \(branch draft\) is there and public.*Make it private in its settings", push(code))
    repo = hub.repos[kind, "user/name"]
    assert set(repo.history) == {"main"} and len(repo.commits) == 1
    repo.private = True
    assert push(code) == "" and "draft" in repo.history


def test_a_token_in_an_error_is_hidden(push: Callable[..., str]) -> None:
    assert push(f"print(HubError('bad {WRITER} token'))") == "bad (hidden) token"


def test_checkpoints_go_up_as_revisions_while_work_goes_on(hub: HubServer, push: Callable[..., str]) -> None:
    hub.fail("POST .*/commit/step-20", 403)
    code = """
weights, waiting = Path(sys.argv[1]), Path(sys.argv[1]).with_name("waiting")
checkpoint = weights.with_name("step-10")
checkpoint.mkdir()
weights.rename(checkpoint / "model.safetensors")
(checkpoint / "config.json").write_text("{}")
(checkpoint / "state.pt").write_text("not for the Hub")
pusher = CheckpointPusher("user/name", waiting, leave_out=["state.pt"])
for step in (10, 20, 30):
    pusher.push(step, checkpoint)
for file in checkpoint.iterdir():
    file.unlink()  # training removes old checkpoints
pusher.close()
print(pusher.failed, list(waiting.parent.glob("waiting*")))
"""
    assert push(code) == "['step-20'] []"
    repo = hub.repos["model", "user/name"]
    assert (
        repo.private and titles(hub) == ["initial commit"] and titles(hub, "step-10") == ["initial commit", "Step 10"]
    )
    assert set(hub.files("user/name", "step-30")) == {".gitattributes", "config.json", "model.safetensors"}
    assert titles(hub, "step-20") == ["initial commit"]


def test_checkpoints_do_not_go_where_anybody_reads(hub: HubServer, push: Callable[..., str]) -> None:
    hub.create("user/name")
    code = """
weights = Path(sys.argv[1])
checkpoint = weights.with_name("step-10")
checkpoint.mkdir()
weights.rename(checkpoint / "model.safetensors")
pusher = CheckpointPusher("user/name", weights.with_name("waiting"), leave_out=["state.pt"])
pusher.push(10, checkpoint)
pusher.close()
print(pusher.failed)
"""
    assert push(code) == "['step-10']"
    assert set(hub.repos["model", "user/name"].history) == {"main"} and not hub.lfs
