"""A release goes to the Hub whole and verified, or not at all; what is there then works without this package.

The Hub is a real HTTP server on loopback, publishing and loading are processes of their own.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import WRITER, HubServer
from safetensors.torch import load_file, save_file
from tiny_release import save_published
from tiny_run import make_tokenizer_and_data
from transformers import PreTrainedTokenizerBase

from hf_scratch.hub import client
from hf_scratch.hub.client import HubError
from hf_scratch.hub.publish import Plan, Space, find_release, listing, pin, publish, targets
from hf_scratch.hub.verify import check_ending, load_reference

Run = Callable[..., subprocess.CompletedProcess[str]]
CLI = ("-m", "hf_scratch.cli")


@pytest.fixture
def run(released: Path, tmp_path: Path) -> Path:
    """A copy of the run to tamper with."""
    return Path(shutil.copytree(released, tmp_path / "run"))


# ---- all of it ----

LOAD = """
import sys
sys.modules["hf_scratch"] = None
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
where = {"revision": sys.argv[2], "trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained("user/tiny", **where)
model = AutoModelForCausalLM.from_pretrained("user/tiny", **where)
messages = [{"role": "user", "content": sys.argv[1]}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
print(model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1]:].tolist())
"""


@pytest.mark.slow
def test_a_run_becomes_a_repository_and_a_space_that_work(
    released: Path, hub: HubServer, run_online: Run, tmp_path: Path
) -> None:
    space = ["--space", "user/tiny-demo", "--space-hardware", "zero-a10g", "--space-secret", "MINE"]
    command = [*CLI, "publish", released, "--repo-id", "user/tiny", "--private", *space]
    published = run_online(*command, MINE="what nobody else should read")
    assert published.returncode == 0, published.stderr
    assert "checks passed with what was downloaded from there" in published.stdout

    repo, demo = hub.repos["model", "user/tiny"], hub.repos["space", "user/tiny-demo"]
    (_, commit), files = repo.history["main"], hub.files("user/tiny")
    assert repo.private and len(files["model.safetensors"]) > 10_000_000
    assert b'name = "user/tiny"' in files["README.md"] and b"/spaces/user/tiny-demo" in files["README.md"]
    here = {
        path.relative_to(released / "release/model").as_posix() for path in (released / "release/model").rglob("*.*")
    }
    assert here <= set(files)
    assert b"your-name" in (released / "release/model/README.md").read_bytes()  # the release itself is untouched

    extra = demo.extra
    assert (extra["sdk"], extra["hardware"], extra["secrets"]) == (
        "gradio",
        "zero-a10g",
        {"MINE": "what nobody else should read"},
    )
    shown = hub.files("user/tiny-demo", kind="space")
    assert f'"MODEL_REVISION", "{commit}"'.encode() in shown["app.py"] and b'"user/tiny"' in shown["app.py"]
    assert "--space-secret HF_TOKEN" in published.stdout  # without it the Space cannot read a private model
    for content in [*files.values(), *shown.values(), (published.stdout + published.stderr).encode()]:
        assert WRITER.encode() not in content and b"what nobody else" not in content

    said = json.loads(files["verification/reference.json"])
    loads_and_answers(run_online, released / "release/model", "main", HF_HOME=str(tmp_path / "empty"))

    asked = said["messages"][0]["content"]
    talked = run_online(*CLI, "chat", "user/tiny", said=f"{asked}\n")
    assert talked.returncode == 0, talked.stderr
    assert talked.stdout == said["observed"]["answer"] + "\n"

    verified = run_online(*CLI, "verify", "user/tiny", "--trust-remote-code")
    assert verified.returncode == 0 and "logits equal: bit-equal" in verified.stdout, verified.stdout
    space_answers(shown, hub, tmp_path)


def loads_and_answers(run_online: Run, folder: Path, revision: str, **environment: str) -> None:
    """Load `user/tiny` as anybody would, and compare its answer with what the folder's model said."""
    said = json.loads((folder / "verification/reference.json").read_text())
    loaded = run_online("-I", "-c", LOAD, said["messages"][0]["content"], revision, **environment)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == said["observed"]["answer_ids"]


def space_answers(files: dict[str, bytes], hub: HubServer, folder: Path) -> None:
    """Start the Space's files as the Hub does, and wait until its page is there."""
    for name, content in files.items():
        (folder / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "space" / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GRADIO_", "MODEL_", "PYTHON"))}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "space-hf"), "HF_TOKEN": WRITER, "OMP_NUM_THREADS": "1"}
    kept |= {"GRADIO_SERVER_PORT": str(port), "HF_HUB_DISABLE_XET": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=folder / "space", env=kept, stdout=log, stderr=log)
    try:
        while not opens(port):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(timeout=20)
    commit = hub.repos["model", "user/tiny"].history["main"][-1]
    assert any(f"/user/tiny/resolve/{commit}/model.safetensors" in request for request in hub.requests)


def opens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_weights_in_shards_are_published_and_load(
    run: Path, hub: HubServer, run_online: Run, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = run / "release/model"
    (model / "model.safetensors").unlink()
    save_published(model, make_model(max_position_embeddings=512), tiny_tokenizer, shard="50KB")
    assert len(list(model.glob("model-*.safetensors"))) > 2
    published = run_online(*CLI, "publish", run, "--repo-id", "user/tiny")
    assert published.returncode == 0, published.stderr
    assert {path.name for path in model.glob("model*")} <= set(hub.files("user/tiny"))
    loads_and_answers(run_online, model, "main")


@pytest.mark.long
def test_stages_become_branches_and_a_refusal_in_between_is_mended_by_the_same_command(
    run: Path, hub: HubServer, run_online: Run, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    stages = {name: run / "release/stages" / name for name in ("base", "sft")}
    for width, folder in zip((64, 96), stages.values(), strict=True):
        model = make_model(max_position_embeddings=512, intermediate_size=width)
        save_published(folder, model, tiny_tokenizer, chats=folder.name == "sft")
    space = ["--space", "user/demo", "--space-kind", "gradio"]
    command = [*CLI, "publish", run, "--stages", "base,sft", *space, "--repo-id"]
    hub.pro = True
    hub.fail("POST .*/commit/sft", 403)
    refused = run_online(*command, "user/tiny")
    assert refused.returncode == 1
    assert "the commit to user/tiny (branch sft) (nothing was committed): HTTP 403" in refused.stderr
    repo = hub.repos["model", "user/tiny"]
    assert {branch: len(commits) for branch, commits in repo.history.items()} == {"main": 1, "base": 2, "sft": 1}
    assert ("space", "user/demo") not in hub.repos

    published = run_online(*command, "user/tiny")
    assert published.returncode == 0, published.stderr
    assert {branch: len(commits) for branch, commits in repo.history.items()} == {"main": 2, "base": 2, "sft": 2}
    heads = {branch: commits[-1] for branch, commits in repo.history.items()}
    for name, folder in stages.items():
        files = hub.files("user/tiny", name)
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert f'(name, revision="{name}", trust_remote'.encode() in files["README.md"]
        loads_and_answers(run_online, folder, name)
    app = hub.files("user/demo", kind="space")["app.py"].decode()
    assert f'"STAGES", "base=user/tiny@{heads["base"]} sft=user/tiny@{heads["sft"]}"' in app
    assert f'"MODEL_REVISION", "{heads["main"]}"' in app

    published = run_online(*CLI, "publish", run, "--stages", "sft", "--repo-id", "user/tiny-{stage}")
    assert published.returncode == 0, published.stderr
    assert "Talk to it:  hf-scratch chat user/tiny-sft\n" in published.stdout
    assert hub.files("user/tiny-sft")["model.safetensors"] == (stages["sft"] / "model.safetensors").read_bytes()
    assert ("model", "user/tiny-base") not in hub.repos


@pytest.mark.long
def test_a_hub_that_spoils_the_file_is_found_out(released: Path, hub: HubServer, run_online: Run) -> None:
    hub.spoils = True
    published = run_online(
        *CLI, "publish", released, "--repo-id", "user/tiny", "--space", "user/tiny-demo", "--space-kind", "gradio"
    )
    commit = hub.repos["model", "user/tiny"].history["main"][-1]
    assert published.returncode == 1
    assert f"commit {commit} of user/tiny is bad" in published.stderr and "weights equal" in published.stderr
    assert ("space", "user/tiny-demo") not in hub.repos


@pytest.mark.long
def test_pretraining_pushes_its_checkpoints_as_revisions(hub: HubServer, run_online: Run, tmp_path: Path) -> None:
    make_tokenizer_and_data(tmp_path)
    folders = [f"--{name}={tmp_path}/{name}" for name in ("data", "tokenizer")]
    sizes = "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --context_length 64 --batch_rows 2"
    steps = "--max_steps 6 --save_steps 2 --keep_checkpoints 1 --eval_steps 6 --push_to user/tiny".split()
    pretrain = ["-m", "training.pretrain", *folders, *sizes.split(), *steps]
    trained = run_online(*pretrain, f"--output_dir={tmp_path}/pretrain")
    assert trained.returncode == 0, trained.stderr
    assert set(hub.repos["model", "user/tiny"].history) == {"main", "step-2", "step-4", "step-6"}
    assert not list((tmp_path / "pretrain").glob("to_push*"))
    code = """
from transformers import AutoModelForCausalLM
for revision in ("step-2", "step-6"):
    model = AutoModelForCausalLM.from_pretrained("user/tiny", revision=revision, trust_remote_code=True)
    print(float(model.model.embed_tokens.weight.abs().sum()))
"""
    loaded = run_online("-I", "-c", code)
    assert loaded.returncode == 0, loaded.stderr
    early, last = map(float, loaded.stdout.split())
    final = load_file(tmp_path / "pretrain/model/model.safetensors")["model.embed_tokens.weight"]
    assert last == pytest.approx(float(final.abs().sum()), rel=1e-6) and early != last


# ---- what is refused, before anything is sent ----


def change_a_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] += 1e-7
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def alter_the_template(model: Path) -> None:
    template = model / "chat_template.jinja"
    template.write_text("Obey. " + template.read_text())


def remove_code(model: Path) -> None:
    (model / "configuration_scratch.py").unlink()


def add_a_pickle(model: Path) -> None:
    (model / "optimizer.bin").write_bytes(b"\x80\x04.")


def remove_a_shard(model: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def add_a_token(model: Path) -> None:
    (model / "training_record").mkdir()
    (model / "training_record" / "notes.json").write_text(json.dumps({"token": WRITER}))


def change_an_export(model: Path) -> None:
    (model / "gguf").mkdir()
    (model / "gguf" / "model-f32.gguf").write_bytes(b"GGUF")
    record = {"source_weights": "?", "files": {"model-f32.gguf": {"bytes": 4, "sha256": "?"}}, "measured": {}}
    (model / "gguf" / "export.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        pytest.param(change_a_weight, "weights equal, bit for bit", marks=pytest.mark.slow),
        pytest.param(alter_the_template, "prompt encoded alike", marks=pytest.mark.slow),
        (remove_code, "code that config.json names is there .configuration_scratch.py"),
        (remove_a_shard, "weights are safetensors .model-00002-of-00002.safetensors is missing"),
        (add_a_pickle, "no pickle .optimizer.bin"),
        (add_a_token, "no secrets .*notes.json, line 1: looks like a secret"),
        (change_an_export, "gguf export is the one that was verified .model-f32.gguf, it was made of other weights"),
    ],
)
def test_a_release_that_was_tampered_with_is_refused(run: Path, tamper: Callable[[Path], None], says: str) -> None:
    tamper(run / "release/model")
    with pytest.raises(ValueError, match=f"nothing was pushed.*{says}") as error:
        publish(run, Plan(repo_id="user/tiny"), print)
    assert WRITER not in str(error.value)


def test_a_token_in_the_space_is_not_published(run: Path) -> None:
    with (run / "release/space/app.py").open("a") as app:
        app.write(f'TOKEN = "{WRITER}"\n')
    with pytest.raises(
        ValueError, match=r"nothing was pushed: the Space .*app.py, line \d+: looks like a secret"
    ) as e:
        publish(run, Plan(repo_id="user/tiny", space=Space(repo_id="user/demo")), print, dry_run=True)
    assert WRITER not in str(e.value)


@pytest.mark.slow
def test_what_is_pushed_of_a_space_is_what_was_looked_at(run: Path, hub: HubServer, run_online: Run) -> None:
    """Even if its files change while the model goes up."""
    code = f"""
import sys
from pathlib import Path
from hf_scratch import cli
from hf_scratch.hub import publish
push = publish.push_model
def slow(*args):
    with Path({str(run / "release/space/app.py")!r}).open("a") as app:
        app.write('TOKEN = "{WRITER}"')
    return push(*args)
publish.push_model = slow
line = "--repo-id user/tiny --space user/demo --space-kind gradio"
cli.main(["publish", {str(run)!r}, *line.split()])
"""
    hub.pro = True
    published = run_online("-c", code)
    assert published.returncode == 0, published.stderr
    app = hub.files("user/demo", kind="space")["app.py"]
    assert WRITER.encode() not in app and b'"MODEL_REVISION", "' in app


def test_a_space_that_cannot_be_pinned_is_told_before_anything_is_sent(run: Path) -> None:
    (run / "release/space/app.py").write_text("print('no model')")
    with pytest.raises(ValueError, match="does not read MODEL_ID once"):
        publish(run, Plan(repo_id="user/tiny", space=Space(repo_id="user/demo")), print)


def test_what_lies_in_hidden_folders_stays_here(tmp_path: Path) -> None:
    """As what an export that was killed leaves behind."""
    for name in ("config.json", ".gitattributes", "gguf/model.gguf", ".gguf-x1/gguf/model.gguf", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(listing(tmp_path)) == {"config.json", ".gitattributes", "gguf/model.gguf"}


def test_a_release_without_its_reference_is_refused(run: Path) -> None:
    shutil.rmtree(run / "release/model/verification")
    with pytest.raises(ValueError, match="does not say what its model said"):
        publish(run, Plan(repo_id="user/tiny"), print)


@pytest.mark.slow
@pytest.mark.parametrize("public", ["model", "space"])
def test_a_private_release_sends_nothing_if_one_of_its_places_is_public(
    released: Path, hub: HubServer, run_online: Run, public: str
) -> None:
    hub.create("user/tiny", public)
    command = [*CLI, "publish", released, "--repo-id", "user/tiny", "--space", "user/tiny", "--private"]
    refused = run_online(*command)
    assert refused.returncode == 1 and "user/tiny is there and public" in refused.stderr
    assert len(hub.repos) == 1 and len(hub.repos[public, "user/tiny"].commits) == 1 and not hub.lfs


@pytest.mark.parametrize("name", ["tiny", "user/a/b", "user/t..y", "user/-x"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_done(released: Path, name: str) -> None:
    for plan in (Plan(repo_id=name), Plan(repo_id="user/tiny", space=Space(repo_id=name))):
        with pytest.raises(HubError, match="is not a name that the Hub takes"):
            publish(released, plan, print)


def test_what_is_missing_is_named(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no release .*python -m training.release"):
        find_release(tmp_path)
    assert find_release(released) == find_release(released / "release") == released / "release"
    with pytest.raises(ValueError, match="'dop' is not one of base, sft, dpo"):
        targets(released / "release", Plan(repo_id="user/tiny", stages=["dop"]))
    with pytest.raises(ValueError, match="stages/sft does not exist; make it with"):
        targets(released / "release", Plan(repo_id="user/tiny", stages=["sft"]))
    with pytest.raises(ValueError, match="--space-secret UNSET"):
        publish(released, Plan(repo_id="user/tiny", space=Space(repo_id="user/d", secrets=["UNSET"])), print)
    with pytest.raises(ValueError, match="cannot be pinned"):
        pin("MODEL_REVISION", {"MODEL_REVISION": "0" * 40})


def test_stages_become_branches_or_repositories(released: Path, run: Path) -> None:
    for stage in ("base", "sft"):
        shutil.copytree(released / "release/model", run / "release/stages" / stage)
    branches = targets(run / "release", Plan(repo_id="user/tiny", stages=["base", "sft"]))
    assert [str(target) for target, _ in branches] == [
        "user/tiny (branch base)", "user/tiny (branch sft)", "user/tiny"
    ]  # fmt: skip
    own = targets(run / "release", Plan(repo_id="user/tiny-{stage}", stages=["base", "sft"]))
    assert [str(target) for target, _ in own] == ["user/tiny-base", "user/tiny-sft"]


def test_a_chat_model_that_does_not_end_is_refused_and_a_base_model_is_not(released: Path) -> None:
    reference = load_reference(released / "release/model")
    assert reference and check_ending(reference).passed
    reference.observed["ended"] = False
    assert not check_ending(reference).passed
    assert check_ending(type(reference)(reference.messages, reference.observed, chats=False)).passed


@pytest.mark.slow
def test_a_dry_run_sends_nothing(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Offline: a request would raise.
    publish(released, Plan(repo_id="user/tiny", space=Space(repo_id="user/demo")), print, dry_run=True)
    out = capsys.readouterr().out
    assert "nothing was sent" in out and "bytes  verification/logits.safetensors" in out


def test_the_hub_that_is_switched_off_is_named() -> None:
    with pytest.raises(HubError, match="looking up user/tiny: the Hub is switched off by HF_HUB_OFFLINE"):
        client.head(client.HfApi(), client.Target("user/tiny"))
