"""The Space as people meet it: a browser (Debian's chromium) on loopback, wide and narrow, light and dark.

SCREENS names a folder for the screenshots. SPACE_RELEASE names a release to show instead of one of noise; the picture
in the README is 1280_light_inside.png of

    SPACE_RELEASE=runs/quickstart/release/model SCREENS=screens python -m pytest tests/test_space.py -k works
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from running_space import Running
from safetensors.torch import load_file
from tiny_release import EXAMPLE, NAME

from training import dpo
from training.chat.rows import load_rows

# Clicks when the first words are there: 2,000 tokens take this model two seconds, and a test's own click longer.
STOP_AT_ONCE = """() => new MutationObserver((_, watch) => {
    const stop = document.querySelector('[data-testid=stop-button]');
    if (!stop || !document.querySelector('[data-testid=bot]')?.innerText) return;
    watch.disconnect();
    stop.click();
}).observe(document.body, {childList: true, subtree: true, characterData: true})"""


@dataclass
class Visit:
    page: Any
    complaints: list[str]  # console errors, and requests to other machines that were not blocked

    def say(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def open(self, tab: str) -> None:
        """Open a tab, which a narrow page may keep behind a button."""
        found = self.page.get_by_role("tab", name=tab, exact=True)
        found.first.click()


@pytest.fixture
def visit(chromium: Any, running: Running) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(width: int = 1280, height: int = 800, scheme: str = "light") -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
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
@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")])
def test_every_page_works(visit: Callable[..., Visit], screens: Path, width: int, scheme: str) -> None:
    here = visit(width, 812 if width < 500 else 800, scheme)
    page = here.page

    def shot(name: str) -> None:
        page.wait_for_timeout(400)  # tabs and plots move into place
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.screenshot(path=screens / f"{width}_{scheme}_{name}.png", full_page=True, animations="disabled")

    shot("start")
    here.say("Tell me a story about a fox named Pip who lost a red kite in the forest.")
    page.get_by_role("button", name="Retry").wait_for()
    shot("chat")

    here.open("Compare")
    page.locator("#compare-run").click()
    page.get_by_role("button", name="A is better", disabled=False).wait_for()
    page.get_by_role("button", name="Tie").click()
    page.get_by_text("Not saved").wait_for()
    shot("compare")

    here.open("Look inside")
    page.locator("#strip button").first.wait_for()
    page.locator("#step").click()
    page.locator("#strip .drawn").wait_for()
    page.locator("#strip button").nth(6).click()
    page.locator("#strip button:nth-child(7)[aria-pressed=true]").wait_for()
    assert page.locator("#bars tbody tr").count() == 10
    assert page.locator("#map rect").count() > 6
    shot("inside")

    here.open("Training")
    page.get_by_text("95 % intervals").wait_for()
    page.locator("canvas, svg.marks").first.wait_for()
    shot("training")
    assert here.complaints == []


@pytest.mark.slow
def test_a_stream_stops(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    page.get_by_role("button", name="System prompt and sampling").first.click()
    page.get_by_role("spinbutton", name="Longest answer").first.fill("2000")
    page.get_by_role("spinbutton", name="Longest answer").first.blur()
    page.evaluate(STOP_AT_ONCE)
    here.say("Hello")
    page.get_by_test_id("bot").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    about = page.locator("#status").inner_text()
    # The first token alone has no speed.
    assert re.match(r"(1 token|\d+ tokens · \d+ tokens/s) · first after [\d.]+ s · seed \d+", about)
    assert int(about.split()[0]) < 2000


@pytest.mark.slow
def test_conversations_outlive_the_page(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    for text in ("First talk", "Second talk"):
        here.say(text)
        page.get_by_role("button", name="Retry").wait_for()
        page.locator("button, td", has_text=text).first.wait_for()  # in the list beside the conversation
        page.get_by_role("button", name="New chat").click()
        page.wait_for_function("() => !document.querySelector('[data-testid=user]')")
    page.reload()
    page.get_by_text("First talk").click()
    page.wait_for_function("() => document.querySelector('[data-testid=user]')?.innerText == 'First talk'")


@pytest.mark.slow
def test_a_link_brings_its_prompt(visit: Callable[..., Visit], running: Running) -> None:
    here = visit()
    here.page.goto(f"{running.url}/?prompt=Tell+me+%3Cb%3Eall%3C%2Fb%3E")
    message = here.page.get_by_role("textbox", name="Message")
    here.page.wait_for_function("() => document.querySelector('#message textarea')?.value")
    assert message.input_value() == "Tell me <b>all</b>"
    assert here.page.get_by_test_id("user").count() == 0


@pytest.mark.slow
def test_a_choice_becomes_a_pair_that_dpo_trains_on(
    visit: Callable[..., Visit], running: Running, space_release: Path, tmp_path: Path
) -> None:
    here = visit()
    page = here.page
    here.open("Compare")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Tell me a story.")
    page.get_by_role("checkbox", name="Save my choices").check()
    for choice in ("A is better", "B is better"):
        page.locator("#compare-run").click()
        page.get_by_role("button", name=choice, disabled=False).click()
        page.get_by_text("of yours to download").wait_for()
    with page.expect_download() as started:
        page.locator("#download").click()
    pairs = tmp_path / "pairs.jsonl"
    started.value.save_as(pairs)
    (kept,) = running.preferences.glob("pairs_*.jsonl")
    assert kept.read_text() == pairs.read_text() and len(pairs.read_text().splitlines()) == 2

    few = "--batch_size 2 --max_steps 1 --warmup_ratio 0 --log_steps 1 --max_length 512 --learning_rate 0.01".split()
    dpo.main(["--model", str(space_release), "--data", str(pairs), "--output_dir", str(tmp_path / "dpo"), *few])
    before, after = (load_file(folder / "model.safetensors") for folder in (space_release, tmp_path / "dpo" / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_thumbs_are_rows_for_kto_if_the_visitor_agrees(visit: Callable[..., Visit], running: Running) -> None:
    here = visit()
    page = here.page
    here.say("Hello")
    page.get_by_role("button", name="Retry").wait_for()
    page.get_by_role("button", name=re.compile("^(clicked )?like$", re.I)).first.click()
    page.get_by_text("Not saved: tick the box").wait_for()
    assert list(running.preferences.glob("thumbs_*.jsonl")) == []
    page.get_by_role("checkbox", name="Save my thumbs").check()
    here.say("And more?")
    page.wait_for_function("() => document.querySelectorAll('[data-testid=bot]').length == 2")
    page.get_by_role("button", name="Retry").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    page.get_by_role("button", name=re.compile("^(clicked )?dislike$", re.I)).last.click()
    page.get_by_text("Saved. Thank you.").wait_for()
    (kept,) = running.preferences.glob("thumbs_*.jsonl")
    (row,) = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
    assert row["prompt"][-1]["content"] == "And more?" and row["completion"][0]["content"] and row["label"] is False
    assert load_rows(("preferences", "thumbs"), str(kept), 0, 0, 0).kind == "thumbs"


@pytest.mark.slow
def test_retry_undo_edit_and_example(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    said, answered = page.get_by_test_id("user"), page.get_by_test_id("bot")
    page.get_by_text(EXAMPLE).first.click()
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
    here.open("Compare")
    page.get_by_role("textbox", name="Prompt", exact=True).fill(ATTACK)
    page.locator("#compare-run").click()
    page.get_by_role("button", name="A is better", disabled=False).wait_for()
    here.open("Look inside")
    page.get_by_role("textbox", name="Text", exact=True).fill(ATTACK[:120])
    page.locator("#look").click()
    page.locator("#strip button", has_text="<").first.wait_for()
    assert page.locator("#strip script, #strip img, #map img, #bars img").count() == 0
    assert page.title() == NAME
    assert message.locator("script, iframe, style, [onerror], [onload], [href^=javascript]").count() == 0
    assert "<|im_end|>" in message.inner_text()
    assert left == []
    for picture in ("https://example.com/seen.png", "https://example.com/seen.gif"):
        assert any(picture in text and "Content Security" in text for text in here.complaints)


@pytest.mark.slow
def test_everything_on_the_page_has_a_name(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.get_by_role("button", name="System prompt and sampling").first.click()
    here.say("Hello")
    here.page.get_by_role("button", name="Retry").wait_for()
    snapshot = ""
    for tab in ("Chat", "Compare", "Look inside", "Training"):
        here.open(tab)
        here.page.wait_for_timeout(500)
        snapshot += here.page.locator("body").aria_snapshot()
    assert re.findall(r"- (?:button|textbox|slider|spinbutton|link|combobox|checkbox)(?! \")[^\n]*", snapshot) == []
    for name in ("System prompt", "Temperature", "Top-k", "Top-p", "Repetition penalty", "Longest answer", "Seed"):
        assert name in snapshot
    for name in ("First model", "Save my choices", "Answer A", "Text", "Layer", "After the token at position"):
        assert name in snapshot
