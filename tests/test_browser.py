"""The page that runs a model in the visitor's browser: Debian's chromium, the served folder, and nobody else.

SCREENS names a folder for the screenshots; the picture in the README is 1280_light_chat.png of

    BROWSER_RELEASE=runs/quickstart/release/model SCREENS=screens python -m pytest tests/test_browser.py -k works
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running_page import Visit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch.export.browser import TIE
from hf_scratch.export.original import Greedy, greedy
from hf_scratch.tokenizer import encode_prompt
from training import dpo
from training.stories.talk import prompts

VisitPage = Callable[..., Visit]
STORY = "Tell me a story about a fox named Pip who lost a red kite in the forest."


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")])
def test_every_page_works(visit_page: VisitPage, page_url: str, screens: Path, width: int, scheme: str) -> None:
    here = visit_page(page_url, width, 812 if width < 500 else 800, scheme)
    page = here.page

    def shot(name: str) -> None:
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.screenshot(path=screens / f"{width}_{scheme}_{name}.png", full_page=True, animations="disabled")

    here.ready()
    shot("start")
    here.say(STORY)
    assert here.answered()
    assert re.match(
        r"\d+ tokens · \d+ tokens/s · first after [\d.]+ s · seed \d+", page.locator("#status").inner_text()
    )
    shot("chat")

    here.open("Compare")
    page.locator("#compare").click()
    page.get_by_role("button", name="Tie", disabled=False).click()
    page.get_by_text("A tie is no pair").wait_for()
    shot("compare")

    here.open("Look inside")
    page.locator("#bars tbody tr").nth(9).wait_for()
    page.locator("#step").click()
    page.locator("#strip .drawn").wait_for()
    page.locator("#strip button").nth(6).click()
    page.locator("#strip button:nth-child(7)[aria-pressed=true]").wait_for()
    assert page.locator("#bars tbody tr").count() == 10
    shot("inside")

    here.open("Training")
    page.get_by_text("95 % intervals").first.wait_for()
    page.locator("svg.plot path").first.wait_for()
    shot("training")
    assert here.complaints == []


@pytest.mark.slow
def test_the_first_words_come_at_once(visit_page: VisitPage, page_url: str) -> None:
    # The best of three, since other work may keep the processor busy.
    ready, first = [], []
    for _ in range(3):
        started = time.monotonic()
        here = visit_page(page_url).ready()
        ready.append(time.monotonic() - started)
        here.say("Hello")
        here.answered()
        first.append(float(re.search(r"first after ([\d.]+) s", here.page.locator("#status").inner_text())[1]))
    print(f"\nready after {ready} s, first text after {first} s")
    assert min(ready) < 5 and min(first) < 0.3


# ---- the same tokens as transformers ----

ANSWER = """async ([prompts, most]) => {
    const engine = await demo.app.engine(), tokens = await demo.app.tokens, found = [];
    const sampling = {...demo.app.manifest.defaults, temperature: 0, repetition_penalty: 1, max_new_tokens: most};
    for (const messages of prompts) {
        const ids = tokens.encode(messages);
        found.push([ids, (await engine.generate(ids, sampling, 0, () => {})).ids]);
    }
    return found;
}"""


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(visit_page: VisitPage, page_url: str, page_release: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(page_release, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(page_release, trust_remote_code=True)
    asked = [messages for _, messages in itertools.islice(prompts("test", 0), 20)]
    most = 64 if "BROWSER_RELEASE" not in os.environ else 200
    here = visit_page(page_url).ready()
    never, ends = model.generation_config.suppress_tokens or [], model.generation_config.eos_token_id
    equal = 0
    for messages, (ids, found) in zip(asked, here.page.evaluate(ANSWER, [asked, most]), strict=True):
        assert ids == encode_prompt(tokenizer, messages)
        expected = cut(greedy(model, ids, most, never), ends)
        assert expected.agrees(found, TIE), (messages, expected.tokens, found)
        equal += expected.tokens == found
    print(f"\n{equal} of {len(asked)} answers have the same tokens")
    assert equal >= 10  # the others part where two tokens were as likely, as they often are to a model of noise


def cut(said: Greedy, ends: list[int]) -> Greedy:
    """Return an answer without the token that ends it, and what would come after."""
    length = next((place for place, token in enumerate(said.tokens) if token in ends), len(said.tokens))
    return Greedy(said.tokens[:length], said.margins[: length + 1])


@pytest.mark.slow
def test_surprise_and_shares_are_those_of_transformers(
    visit_page: VisitPage, page_url: str, page_release: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(page_release, trust_remote_code=True).eval()
    here = visit_page(page_url).ready()
    here.open("Look inside")
    here.page.get_by_role("textbox", name="Text", exact=True).fill("The owl said: café, 東京")
    here.page.locator("#look").click()
    here.page.wait_for_function("() => demo.inside.places.length && !demo.inside.working")
    places = here.page.evaluate("demo.inside.places")
    with torch.no_grad():
        shares_TV = model(torch.tensor([[place["id"] for place in places]])).logits[0].log_softmax(-1)
    for before, place, next_place in zip(shares_TV, places, places[1:], strict=False):
        bits = -float(before[next_place["id"]]) / float(torch.log(torch.tensor(2.0)))
        assert next_place["bits"] == pytest.approx(bits, abs=0.05)
        share = {token: float(before[token].exp()) for token, _ in place["top"]}
        assert dict(map(tuple, place["top"])) == pytest.approx(share, abs=0.02)


# ---- a conversation ----


@pytest.mark.slow
def test_an_answer_stops_is_tried_again_and_its_question_edited(visit_page: VisitPage, page_url: str) -> None:
    here = visit_page(page_url).ready()
    page = here.page
    page.get_by_text("System prompt and sampling").click()
    page.get_by_role("spinbutton", name="Longest answer").fill(page.locator("#max_new_tokens").get_attribute("max"))
    page.get_by_role("spinbutton", name="Temperature").first.fill("1.2")
    # Stops at the first words: the whole answer may take less than a click.
    page.evaluate("""() => new MutationObserver((_, watch) => {
        if (!document.querySelector('.turn.assistant .text')?.textContent) return;
        watch.disconnect();
        document.getElementById('stop').click();
    }).observe(document.getElementById('conversation'), {childList: true, subtree: true, characterData: true})""")
    here.say(STORY)
    here.answered()
    assert "stopped" in page.locator("#status").inner_text()

    page.get_by_role("spinbutton", name="Longest answer").fill("12")
    first = here.answered()
    page.get_by_role("button", name="Try this answer again").click()
    page.wait_for_function(
        "old => !demo.chat.running && document.querySelector('.turn.assistant .text').textContent != old", arg=first
    )
    assert page.locator(".turn").count() == 2 and "stopped" not in page.locator("#status").inner_text()

    page.get_by_role("button", name="Edit this message").click()
    assert page.get_by_role("textbox", name="Message", exact=True).input_value() == STORY
    here.say("Tell me a poem.")
    here.answered()
    assert page.locator(".turn.user .text").all_inner_texts() == ["Tell me a poem."]
    assert here.complaints == []


@pytest.mark.slow
def test_a_seed_gives_the_same_answer_again(visit_page: VisitPage, page_url: str) -> None:
    here = visit_page(page_url).ready()
    page = here.page
    page.get_by_text("System prompt and sampling").click()
    page.get_by_role("spinbutton", name="Temperature").first.fill("1")
    page.get_by_role("spinbutton", name="Seed").first.fill("7")
    answers = []
    for _ in range(2):
        here.say("Tell me a story.")
        answers.append(here.answered())
        page.get_by_role("button", name="New chat").click()
    assert answers[0] == answers[1] != ""


@pytest.mark.slow
def test_conversations_survive_a_reload_and_are_deleted(visit_page: VisitPage, page_url: str) -> None:
    here = visit_page(page_url).ready()
    page = here.page
    for text in ("First talk", "Second talk"):
        here.say(text)
        here.answered()
        page.get_by_role("button", name="New chat").click()
    page.reload()
    here.ready()
    page.get_by_role("button", name="First talk", exact=True).click()
    assert page.locator(".turn.user .text").inner_text() == "First talk"
    page.get_by_role("button", name="Delete the conversation: First talk").click()
    page.reload()
    page.get_by_role("button", name="Second talk", exact=True).wait_for()
    assert page.get_by_role("button", name="First talk", exact=True).count() == 0


@pytest.mark.slow
def test_a_link_brings_its_prompt_and_the_keyboard_is_enough(visit_page: VisitPage, page_url: str) -> None:
    here = visit_page(f"{page_url}?prompt=Tell+me+%3Cb%3Eall%3C%2Fb%3E").ready()
    page = here.page
    message = page.get_by_role("textbox", name="Message", exact=True)
    assert message.input_value() == "Tell me <b>all</b>" and page.locator(".turn").count() == 0
    message.focus()
    page.keyboard.press("Shift+Enter")
    assert "\n" in message.input_value()
    page.keyboard.press("Enter")
    here.answered()
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#page-compare").is_visible() and not page.locator("#page-chat").is_visible()


@pytest.mark.slow
def test_everything_on_the_page_has_a_name(visit_page: VisitPage, page_url: str) -> None:
    here = visit_page(page_url).ready()
    here.say("Hello")
    here.answered()
    for closed in here.page.locator("summary").all():
        closed.click()
    snapshot = ""
    for tab in ("Chat", "Compare", "Look inside", "Training"):
        here.open(tab)
        here.page.wait_for_function("() => !demo.inside.working")
        snapshot += here.page.locator("body").aria_snapshot()
    assert re.findall(r"- (?:button|textbox|spinbutton|link|combobox|checkbox|img)(?! \")[^\n]*", snapshot) == []
    for name in ("System prompt", "Temperature", "Top-k", "Top-p", "Repetition penalty", "Longest answer", "Seed"):
        assert name in snapshot
    for name in ("Good answer", "Bad answer", "First model", "A is better", "Blind", "Text", "Message"):
        assert name in snapshot


# ---- what somebody chose ----


@pytest.mark.long
def test_pairs_and_thumbs_are_data_that_dpo_trains_on(
    visit_page: VisitPage, page_url: str, page_release: Path, tmp_path: Path
) -> None:
    here = visit_page(page_url).ready()
    page = here.page
    here.open("Compare")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Tell me a story, naïve \u2028 and 東京.")
    page.locator("#compare-temperature").fill("1")
    for choice in ("A is better", "B is better"):
        page.locator("#compare").click()
        page.get_by_role("button", name=choice, disabled=False).click()
        page.get_by_text(f"{choice}. A was").wait_for()
    pairs = save(page, "Download my pairs", tmp_path / "pairs.jsonl")
    assert [row["meta"]["choice"] for row in pairs] == ["a", "b"]
    assert all(row["chosen"] != row["rejected"] and "東京" in row["prompt"][0]["content"] for row in pairs)

    here.open("Chat")
    for text, thumb in (("Hello", "Good answer"), ("Another", "Bad answer"), ("More", "Good answer")):
        here.say(text)
        here.answered()
        page.get_by_role("button", name=thumb).last.click()
    thumbs = save(page, "Download my thumbs", tmp_path / "thumbs.jsonl")
    assert [row["label"] for row in thumbs] == [True, False, True]
    assert [len(row["prompt"]) for row in thumbs] == [1, 3, 5]

    few = "--batch_size 2 --max_steps 1 --warmup_ratio 0 --log_steps 1 --max_length 512 --learning_rate 0.01".split()
    before = load_file(page_release / "model.safetensors")
    for name in ("pairs", "thumbs"):
        data = ["--data", str(tmp_path / f"{name}.jsonl"), "--output_dir", str(tmp_path / name)]
        dpo.main(["--model", str(page_release), *data, *few])
        after = load_file(tmp_path / name / "model" / "model.safetensors")
        assert any(not torch.equal(before[key], after[key]) for key in before), name

    page.get_by_role("button", name="Delete them").first.click()
    assert page.get_by_role("button", name="Download my thumbs").is_disabled()
    assert page.locator(".tools [aria-pressed=true]").count() == 0


def save(page: Any, button: str, path: Path) -> list[dict[str, Any]]:
    """Download a file and return its rows."""
    with page.expect_download() as started:
        page.get_by_role("button", name=button).click()
    started.value.save_as(path)
    return [json.loads(line) for line in path.read_text().split("\n") if line]
