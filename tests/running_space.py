"""The Space as a process of its own, for all tests that meet it: `conftest.py` takes the fixtures from here.

The app runs elsewhere, where hf_scratch cannot be imported, and any attempt to reach another machine is written down.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import WRITER, HubServer
from tiny_release import named_or_noise
from transformers import PreTrainedTokenizerBase

PAIRS = "user/pairs"  # the data set to which clicks are pushed
APP = Path(__file__).parent.parent / "spaces_app" / "app.py"
# Runs in the app's process before anything else: hides our packages and notes every address that is not loopback.
GUARD = """
import os, sys
for name in ("hf_scratch", "training"):
    sys.modules[name] = None
def note(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost"):
        with open(os.environ["OUTSIDE"], "a") as file:
            print(event, host, file=file)
sys.addaudithook(note)
"""


@pytest.fixture(scope="session")
def space_release(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A release of noise, or the one that SPACE_RELEASE names, for pictures that show something."""
    return named_or_noise("SPACE_RELEASE", tmp_path_factory.mktemp("release"), make_model, tiny_tokenizer)


@dataclass
class Running:
    url: str
    pid: int
    outside: Path  # addresses that it tried to reach
    preferences: Path


@pytest.fixture(scope="session")
def running(space_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with HubServer() as hub:
        folder = tmp_path_factory.mktemp("space")
        yield from run_app(space_release, folder, hub)
        sent = hub.files(PAIRS, kind="dataset")
    # What was clicked is on the Hub once the app has ended, however soon that was.
    for path in (folder / "preferences").glob("*.jsonl"):
        assert sent[path.name] == path.read_bytes()
    assert hub.repos["dataset", PAIRS].private


def run_app(space_release: Path, folder: Path, hub: HubServer) -> Iterator[Running]:
    (folder / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not told to be offline: it must not try.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GRADIO_", "TRANSFORMERS_"))}
    environment |= {"MODEL_ID": str(space_release), "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(folder)}
    environment |= {"PREFERENCES_FOLDER": str(folder / "preferences")}
    environment |= {
        "PREFERENCES_DATASET": PAIRS,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"OUTSIDE": str(folder / "outside"), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(APP)], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not answers(port):
            assert process.poll() is None and time.monotonic() < started + 300, (folder / "log").read_text()
            time.sleep(0.1)
        print(f"\nthe app was ready after {time.monotonic() - started:.1f} s")
        yield Running(f"http://127.0.0.1:{port}", process.pid, folder / "outside", folder / "preferences")
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert not (folder / "outside").exists(), (folder / "outside").read_text()
    assert "an answer failed" not in (folder / "log").read_text()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(running: Running) -> Any:
    from gradio_client import Client

    return Client(running.url, verbose=False)
