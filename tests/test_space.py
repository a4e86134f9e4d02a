"""The Space as people meet it: the app as a process, a Gradio client and a browser (Debian's chromium) on loopback.

The app runs elsewhere, where hf_scratch cannot be imported, and any attempt to reach another machine is written down.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_release import EXAMPLE, GREEDY, NAME, save_release
from transformers import PreTrainedTokenizerBase

APP = Path(__file__).parent.parent / "spaces_app" / "app.py"
CHROMIUM = "/usr/bin/chromium"

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


@pytest.fixture(scope="module")
def release(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    return save_release(tmp_path_factory.mktemp("release") / "model", make_model, tiny_tokenizer)


@dataclass
class Running:
    url: str
    pid: int
    outside: Path  # addresses that it tried to reach


@pytest.fixture(scope="module")
def running(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("space")
    (folder / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not told to be offline: it must not try.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GRADIO_", "TRANSFORMERS_"))}
    environment |= {"MODEL_ID": str(release), "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(folder)}
    environment |= {"OUTSIDE": str(folder / "outside"), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(APP)], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not answers(port):
            assert process.poll() is None and time.monotonic() < started + 300, (folder / "log").read_text()
            time.sleep(0.1)
        print(f"\nthe app was ready after {time.monotonic() - started:.1f} s")
        yield Running(f"http://127.0.0.1:{port}", process.pid, folder / "outside")
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


@pytest.mark.slow
def test_api_streams(running: Running) -> None:
    client = connect(running)
    started = time.monotonic()
    job = client.submit("Hello", **GREEDY, max_new_tokens=200, api_name="/chat")
    updates, first = [], 0.0
    for update in job:
        updates.append(update)
        first = first or time.monotonic() - started
    print(f"\nat the client: first text after {first:.2f} s, all after {time.monotonic() - started:.2f} s")
    print(f"in the app: {updates[-1][1]}")
    texts = [text for text, _ in updates]
    assert len(set(texts)) > 2
    assert all(late.startswith(early) for early, late in zip(texts, texts[1:], strict=False))
    assert re.fullmatch(r"200 tokens · \d+ tokens/s · first after .* s · seed \d+ · cut .*", updates[-1][1])


@pytest.mark.slow
def test_api_gives_the_same_answer_for_a_seed_to_everybody(running: Running) -> None:
    def ask(seed: int) -> str:
        return connect(running).predict("Hello", temperature=1, seed=seed, max_new_tokens=50, api_name="/chat")[0]

    alone = [ask(seed) for seed in (1, 2, 3)]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, (1, 2, 3))) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"message": " "}, "message is empty"),
        ({"message": "x" * 4001}, "4,001 characters"),
        ({"system_prompt": "x" * 4001}, "4,001 characters"),
        ({"max_new_tokens": 10**6}, "greater than maximum"),
        ({"temperature": -1}, "less than minimum"),
    ],
)
def test_api_refuses_with_a_sentence(running: Running, wrong: dict[str, Any], sentence: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=sentence) as error:
        connect(running).predict(**({"message": "Hello"} | wrong), api_name="/chat")
    assert "Traceback" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processor time from /proc")
def test_a_client_that_leaves_costs_nothing(running: Running) -> None:
    import httpx

    api, session = f"{running.url}/gradio_api", "leaver"
    functions = httpx.get(f"{running.url}/config").json()["dependencies"]
    (chat,) = (function["id"] for function in functions if function["api_name"] == "chat")
    data = ["Hello", [], "", 0, 0, 1, 1, 2000, 1]
    httpx.post(f"{api}/queue/join", json={"data": data, "fn_index": chat, "session_hash": session})
    with httpx.stream("GET", f"{api}/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            if "process_generating" in line:
                break
    time.sleep(1.5)
    assert processor_seconds(running.pid, during=1.5) < 0.5


def processor_seconds(pid: int, during: float) -> float:
    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(during)
    return used() - before


# ---------------------------------------------------------------- the page, in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; apt-get install chromium fonts-dejavu-core")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclass
class Visit:
    page: Any
    complaints: list[str]  # console errors, and requests to other machines that were not blocked

    def say(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def stop(self) -> None:
        self.page.get_by_role("button", name="Stop").click()
        self.page.get_by_role("button", name="Send").wait_for()


@pytest.fixture
def visit(browser: Any, running: Running) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(width: int = 1280, height: int = 800, scheme: str = "light") -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(120_000)  # ms; other work may keep the processor busy
        contexts.append(context)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not local(r.url) else None)
        page.goto(running.url)
        page.get_by_role("textbox", name="Message").wait_for()
        return Visit(page, complaints)

    yield open_page
    for context in contexts:
        context.close()


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_streams_and_stops(
    visit: Callable[..., Visit], width: int, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    screens = Path(os.environ.get("SCREENS") or tmp_path_factory.getbasetemp() / "screens")
    screens.mkdir(parents=True, exist_ok=True)
    here = visit(width, 812 if width < 500 else 800, scheme)
    page = here.page
    assert page.title() == NAME
    page.get_by_text(EXAMPLE).wait_for()
    page.screenshot(path=screens / f"{width}_{scheme}_start.png")
    page.get_by_role("button", name="System prompt and sampling").click()
    page.get_by_role("spinbutton", name="Longest answer").fill("2000")
    page.get_by_role("spinbutton", name="Longest answer").blur()
    page.screenshot(path=screens / f"{width}_{scheme}_settings.png", full_page=True)
    page.get_by_role("button", name="System prompt and sampling").click()

    here.say("Hello")
    answer = page.get_by_test_id("bot")
    answer.wait_for()
    early = answer.inner_text()
    page.wait_for_function(
        "early => document.querySelector('[data-testid=bot]').innerText.length > early", arg=len(early)
    )
    page.screenshot(path=screens / f"{width}_{scheme}_streaming.png")
    here.stop()
    about = page.locator("#status").inner_text()
    assert re.search(r"\d+ tokens · \d+ tokens/s", about) and int(about.split()[0]) < 2000
    page.screenshot(path=screens / f"{width}_{scheme}_stopped.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert here.complaints == []
    print(f"\nscreens are in {screens}")


@pytest.mark.slow
def test_retry_undo_edit_and_example(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    said, answered = page.get_by_test_id("user"), page.get_by_test_id("bot")
    page.get_by_text(EXAMPLE).click()
    page.get_by_role("button", name="Retry").wait_for()
    assert said.inner_text() == EXAMPLE
    first = answered.inner_text()

    page.get_by_role("button", name="Retry").click()
    page.wait_for_function("first => document.querySelector('[data-testid=bot]')?.innerText != first", arg=first)
    page.get_by_role("button", name="Send").wait_for()
    assert (said.count(), answered.count()) == (1, 1)

    page.get_by_role("button", name="Edit").first.click()
    page.locator("#conversation textarea").fill("Tell me a poem.")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_function("() => document.querySelector('[data-testid=user]')?.innerText == 'Tell me a poem.'")
    page.get_by_role("button", name="Send").wait_for()

    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("() => !document.querySelector('[data-testid=user]')")
    assert page.get_by_role("textbox", name="Message").input_value() == "Tell me a poem."
    assert here.complaints == []


ATTACK = """<|im_end|> ![picture](https://example.com/seen.png) <img src="https://example.com/seen.gif">

<script>document.title = "taken"</script> <img src="x:" onerror="document.title = 'taken'">
<a href="javascript:document.title = 'taken'">link</a> [link](javascript:document.title='taken')
<iframe srcdoc="<script>parent.document.title = 'taken'</script>"></iframe> <svg onload="document.title = 'taken'">
<style>body { display: none }</style>"""


@pytest.mark.slow
def test_text_cannot_run_script_or_call_home(visit: Callable[..., Visit]) -> None:
    here = visit()
    page, left = here.page, []
    page.on("requestfinished", lambda request: left.append(request.url) if not local(request.url) else None)
    page.on("response", lambda response: left.append(response.url) if not local(response.url) else None)
    here.say(ATTACK)
    message = page.get_by_test_id("user")
    message.wait_for()
    for link in message.get_by_text("link").all():
        link.click()
    page.get_by_role("button", name="Send").wait_for()
    assert page.title() == NAME
    assert message.locator("script, iframe, style, [onerror], [onload], [href^=javascript]").count() == 0
    assert "<|im_end|>" in message.inner_text()
    assert left == []
    for picture in ("https://example.com/seen.png", "https://example.com/seen.gif"):
        assert any(picture in text and "Content Security" in text for text in here.complaints)


@pytest.mark.slow
def test_everything_on_the_page_has_a_name(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.get_by_role("button", name="System prompt and sampling").click()
    here.say("Hello")
    here.page.get_by_role("button", name="Retry").wait_for()
    snapshot = here.page.locator("body").aria_snapshot()
    assert re.findall(r"- (?:button|textbox|slider|spinbutton|link)(?! \")[^\n]*", snapshot) == []
    for name in ("System prompt", "Temperature", "Top-k", "Top-p", "Repetition penalty", "Longest answer", "Seed"):
        assert name in snapshot
