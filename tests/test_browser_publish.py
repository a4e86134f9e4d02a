"""A small model's Space is the page in the browser: published to a Hub, pinned to the commit, and it works from there.

The Hub is a real HTTP server on loopback that answers as the real one does to an account that does not pay.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from running_page import PAGE, Visit

from hf_scratch.export import npm
from hf_scratch.export.browser import build_page, name_token
from hf_scratch.hub.page import MAX_BYTES, fits, size
from hf_scratch.hub.publish import Plan, Space, is_static, publish

Run = Callable[..., subprocess.CompletedProcess[str]]
CLI = ("-m", "hf_scratch.cli")


@pytest.mark.slow
def test_a_free_account_gets_the_page_and_it_answers_from_the_hub(
    released: Path, vendor: Path, hub: HubServer, run_online: Run, visit_page: Callable[..., Visit]
) -> None:
    command = [*CLI, "publish", released, "--repo-id", "user/tiny", "--space", "user/demo"]
    published = run_online(*command, XDG_CACHE_HOME=str(npm.cache().parents[1]))
    assert published.returncode == 0, published.stderr
    assert "runs it in the visitor's browser" in published.stdout

    commit = hub.repos["model", "user/tiny"].history["main"][-1]
    demo, files = hub.repos["space", "user/demo"], hub.files("user/demo", kind="space")
    manifest = json.loads(files["manifest.json"])
    assert demo.extra == {"sdk": "static"}
    assert manifest["source"] == {
        "id": "user/tiny", "revision": commit, "url": f"{hub.url}/user/tiny/tree/{commit}"
    }  # fmt: skip
    assert b"- user/tiny" in files["README.md"] and b"app_file: index.html" in files["README.md"]
    assert b"/spaces/user/demo" in hub.files("user/tiny")["README.md"]
    for path, content in files.items():
        assert b"hf_" + b"w" * 34 not in content, path

    here = visit_page(f"{hub.url}/static/user/demo/").ready()
    assert here.page.evaluate("crossOriginIsolated")
    here.say("Tell me a story.")
    assert here.answered() and here.complaints == []
    assert commit[:8] in here.page.locator("#source").inner_text()


@pytest.mark.slow
def test_a_gradio_space_is_refused_in_a_sentence_and_made_on_zerogpu(
    released: Path, hub: HubServer, run_online: Run
) -> None:
    command = [*CLI, "publish", released, "--repo-id", "user/tiny", "--space", "user/demo"]
    refused = run_online(*command, "--space-kind", "gradio")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    (said,) = [line for line in refused.stderr.splitlines() if "HTTP 402" in line]
    for word in ("Payment Required", "PRO", "--space-kind static", "--space-hardware zero-a10g"):
        assert word in said
    assert ("space", "user/demo") not in hub.repos

    made = run_online(*command, "--space-hardware", "zero-a10g")
    assert made.returncode == 0, made.stderr
    assert hub.repos["space", "user/demo"].extra == {"sdk": "gradio", "hardware": "zero-a10g"}
    assert not any("/hardware" in request for request in hub.requests)  # it was there from the start
    files = hub.files("user/demo", kind="space")
    assert b"/whl/cpu" not in files["requirements.txt"]  # whose builds have no GPU
    assert b"\ntorch==2.11.0" in files["requirements.txt"]
    assert yaml.safe_load(files["README.md"].split(b"---\n")[1])["python_version"] == "3.12.12"


# ---- which kind ----


def test_what_is_too_large_for_a_browser_gets_a_gradio_space(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = released / "release"
    assert fits(release / "model") and size(release / "model") < MAX_BYTES
    assert is_static(Space(repo_id="user/demo", page=build_page), release)
    assert not is_static(Space(repo_id="user/demo", page=build_page, hardware="t4-small"), release)
    assert not is_static(Space(repo_id="user/demo", page=build_page, kind="gradio"), release)
    with pytest.raises(ValueError, match="a static Space has no hardware"):
        is_static(Space(repo_id="user/demo", page=build_page, kind="static", hardware="t4-small"), release)
    monkeypatch.setattr("hf_scratch.hub.page.MAX_BYTES", size(release / "model") - 1)
    assert not is_static(Space(repo_id="user/demo", page=build_page), release)
    with pytest.raises(ValueError, match="people wait for and a phone can compute with. Take --space-kind gradio"):
        is_static(Space(repo_id="user/demo", page=build_page, kind="static"), release)


def test_a_release_without_the_page_says_what_to_do(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make it again with `python -m training.release`"):
        build_page(tmp_path / "browser", {"released": released / "release" / "model"}, tmp_path / "page", print)


# ---- the engine ----


def test_a_package_that_is_not_the_pinned_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = npm.PACKAGES[0]
    registry = tmp_path / "registry"
    (registry / package.path).parent.mkdir(parents=True)
    (registry / package.path).write_bytes(b"something else")
    monkeypatch.setenv("npm_config_registry", registry.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="is not the package that was pinned"):
        npm.fetch(package)
    assert not list((tmp_path / "cache").rglob("*.tgz"))
    (registry / package.path).unlink()
    with pytest.raises(ValueError, match="cannot be fetched .* or take --space-kind gradio"):
        npm.fetch(package)


def test_every_token_has_one_private_character_of_its_own() -> None:
    names = [name_token(number) for number in range(2 * 0xFFFE)]
    assert len(set(names)) == len(names) and all(len(name) == 1 for name in names)
    assert (names[0], names[0xFFFD], names[0xFFFE]) == ("\U000f0000", "\U000ffffd", "\U00100000")


def test_the_page_asks_nobody_else() -> None:
    links = ("https://github.com/ngxson/wllama",)  # what the README names
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        for link in (*links, "http://www.w3.org/"):
            text = text.replace(link, "")
        assert "http://" not in text and "https://" not in text, path.name
    assert "default-src 'self'" in (PAGE / "index.html").read_text()


@pytest.mark.slow
def test_a_dry_run_lists_the_page(released: Path, vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = Space(repo_id="user/demo", page=build_page)
    publish(released, Plan(repo_id="user/tiny", space=space), print, dry_run=True)
    said = capsys.readouterr().out
    assert "the space user/demo would get these files; nothing was sent." in said
    assert "models/released-" in said and "vendor/wllama/wllama.wasm" in said
