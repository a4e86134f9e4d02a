"""The page `Compare`: one prompt, two models or two draws of one, side by side; a click on the better one is data."""

import functools
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from calls import in_a_sentence, on_gpu
from chat_model import MAX_MESSAGE_CHARS, MAX_SEED, MAX_TEMPERATURE, NEW_SEED, Bot, Sampling, answer, longest_answer
from chat_page import LIMIT
from preferences import Pair, Preferences, as_line, make_pair

MAX_KEPT = 500  # pairs that a visitor can download
CHOICES = ("A is better", "Tie", "B is better")
KEPT_OF_A_CHOICE = "each choice is saved: your prompt, both answers, which one you chose, and the models and settings"
DOWNLOADS = tempfile.TemporaryDirectory(prefix="pairs_")
Answers = tuple[str, str]


@dataclass(frozen=True)
class Kept:
    """What a visitor can download: the pairs, and a name for their file that nobody can guess."""

    name: str
    pairs: list[Pair]


def compare(
    bots: dict[str, Bot],
    prompt: str,
    models: tuple[str, str],
    system_prompt: str,
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
) -> Iterator[tuple[Answers, Answers, int]]:
    """Answer with both models at once, each with its own seed; yields texts so far, lines about them, and the seed."""
    seed = random.randint(0, MAX_SEED - 1) if seed in (None, NEW_SEED) else int(seed)
    texts, about = ["", ""], ["", ""]
    with ExitStack() as stack:
        streams = {}
        for side, name in enumerate(models):
            bot, start = bots[name], bots[name].defaults
            sampling = Sampling(temperature, start.top_k, start.top_p, start.repetition_penalty, max_new_tokens)
            stream = answer(bot, prompt, [], system_prompt, sampling, (seed + side) % (MAX_SEED + 1))
            streams[side] = stack.enter_context(closing(stream))
        while streams:
            for side, stream in list(streams.items()):
                update = next(stream, None)
                if update is None:
                    del streams[side]
                else:
                    texts[side], about[side] = update
            yield (texts[0], texts[1]), (about[0], about[1]), seed


def make_stream(bots: dict[str, Bot]) -> Any:
    """Return `compare` for these models; what ZeroGPU wraps must not take them as arguments, which it would copy."""

    def stream(*given: Any) -> Iterator[tuple[Answers, Answers, int]]:
        yield from compare(bots, *given)

    return on_gpu(stream)


def lay_out_settings(bots: dict[str, Bot]) -> list[gr.components.Component]:
    """Lay out the controls and return them in the order in which `compare` takes them."""
    start = next(iter(bots.values())).defaults
    longest = min(longest_answer(bot.context) for bot in bots.values())
    system = gr.Textbox(label="System prompt", max_length=MAX_MESSAGE_CHARS, lines=2, max_lines=6)
    with gr.Row():
        # Greedy, two draws of one model are the same answer.
        temperature = gr.Slider(0, MAX_TEMPERATURE, start.temperature or 0.7, step=0.05, label="Temperature")
        length = gr.Slider(1, longest, min(start.max_new_tokens, longest), step=1, precision=0, label="Longest answer")
        seed = gr.Number(
            NEW_SEED, label="Seed", info="-1 is a new one", precision=0, minimum=NEW_SEED, maximum=MAX_SEED
        )
    return [system, temperature, length, seed]


class ComparePage:
    """The page's parts, and what happens when somebody asks and chooses."""

    def __init__(self, bots: dict[str, Bot], preferences: Preferences) -> None:
        self.stream, self.preferences, names = make_stream(bots), preferences, list(bots)
        self.asked, self.kept = gr.State(None, time_to_live=3600), gr.State(None, time_to_live=3600)
        gr.Markdown("One prompt, two answers, by two models or by one. Say which is better: alignment learns from it.")
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Write a prompt for both",
            value=bots[names[0]].examples[0],
            max_length=MAX_MESSAGE_CHARS,
            max_lines=6,
            elem_id="compare-prompt",
        )
        with gr.Row(equal_height=True):
            self.left = gr.Dropdown(names, value=names[0], label="First model")
            self.right = gr.Dropdown(names, value=names[-1], label="Second model")
            self.blind = gr.Checkbox(True, label="Blind", info="Names and order stay hidden until you choose")
        with gr.Accordion("System prompt and sampling", open=False):
            self.settings = lay_out_settings(bots)
        with gr.Row():
            self.run = gr.Button("Compare", variant="primary", min_width=120, elem_id="compare-run")
            self.stop = gr.Button("Stop", interactive=False, min_width=120, elem_id="compare-stop")
        with gr.Row(equal_height=True):
            self.answers = [
                gr.Textbox(label=f"Answer {side}", lines=8, max_lines=20, interactive=False) for side in "AB"
            ]
        self.status = gr.Markdown("", elem_id="compare-status", elem_classes="quiet")
        self.consent = gr.Checkbox(
            False, label="Save my choices", info=preferences.consent(KEPT_OF_A_CHOICE), elem_id="consent"
        )
        with gr.Row(elem_id="choices"):
            self.votes = [gr.Button(text, interactive=False, min_width=80) for text in CHOICES]
        self.download = gr.DownloadButton("Download my pairs", interactive=False, size="sm", elem_id="download")
        self.connect()

    def connect(self) -> None:
        parts = [*self.answers, self.status, self.asked, self.run, self.stop, *self.votes]
        inputs = [self.prompt, self.left, self.right, self.blind, *self.settings]
        running = gr.on(
            [self.run.click, self.prompt.submit],
            in_a_sentence(self.ask),
            inputs,
            parts,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="once",
            **LIMIT,
        )
        rest = {"outputs": [self.run, self.stop], "api_visibility": "private", "show_progress": "hidden"}
        running.failure(ready_again, **rest)
        self.stop.click(ready_again, cancels=[running], **rest)
        for vote, choice in zip(self.votes, CHOICES, strict=True):
            vote.click(
                in_a_sentence(functools.partial(self.choose, choice)),
                [self.asked, self.consent, self.kept],
                [self.status, self.asked, self.kept, self.download, *self.votes],
                show_progress="hidden",
                api_visibility="private",
            )

    def ask(
        self, prompt: str, left: str, right: str, blind: bool, system: str, temperature: float, length: int, seed: int
    ) -> Iterator[list[Any]]:
        """Stream both answers; when both are there, choosing becomes possible."""
        models = (right, left) if blind and random.random() < 0.5 else (left, right)
        names = ("", "") if blind else (f" · {models[0]}", f" · {models[1]}")
        labels = [f"Answer {side}{name}" for side, name in zip("AB", names, strict=True)]
        closed = [gr.Button(interactive=False)] * len(CHOICES)
        buttons = [gr.Button(interactive=False), gr.Button(interactive=True)]
        prompt, system = prompt or "", system or ""  # a field that nobody has touched may come as None
        for texts, about, used in self.stream(prompt, models, system, temperature, length, seed):
            meta = {"temperature": temperature, "max_new_tokens": length, "seed": used, "blind": blind}
            shown = [gr.Textbox(value=text, label=label) for text, label in zip(texts, labels, strict=True)]
            lines = "" if blind else "  \n".join(f"{side}: {line}" for side, line in zip("AB", about, strict=True))
            yield [*shown, lines, None, *buttons, *closed]
        asked = {"prompt": prompt.strip(), "system": system.strip(), "answers": texts, "models": models, "meta": meta}
        same = texts[0].strip() == texts[1].strip()
        says = "Both gave the same answer; raise the temperature or take another model." if same else lines
        able = [gr.Button(interactive=not same)] * len(CHOICES)
        yield [*shown, says, None if same else asked, gr.Button(interactive=True), gr.Button(interactive=False), *able]

    def choose(self, choice: str, asked: dict[str, Any] | None, consent: bool, kept: Kept | None) -> list[Any]:
        """Take a choice: say which model was which and, if the visitor agreed, save it."""
        if asked is None:
            raise gr.Error("There is nothing to choose from; compare two answers first.", print_exception=False)
        (a, b), names = asked["answers"], asked["models"]
        meta = {"a": names[0], "b": names[1], "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        meta |= asked["meta"] | {"choice": {CHOICES[0]: "a", CHOICES[1]: "tie", CHOICES[2]: "b"}[choice]}
        said = f"{choice}. A was **{names[0]}**, B was **{names[1]}**."
        if not consent:
            said += " Not saved."
        elif choice == CHOICES[1]:
            pair = make_pair(asked["prompt"], asked["system"], a, b, meta)
            answers = {"answers": [pair["chosen"], pair["rejected"]]}
            self.preferences.save("ties", {"prompt": pair["prompt"]} | answers | {"meta": meta})
            said += " Saved as a tie, which is no pair."
        elif not (a.strip() and b.strip()):
            said += " Not saved: one of the answers is empty."
        else:
            chosen, rejected = (a, b) if choice == CHOICES[0] else (b, a)
            pair = make_pair(asked["prompt"], asked["system"], chosen, rejected, meta)
            self.preferences.save("pairs", pair)
            kept = Kept(kept.name, [*kept.pairs, pair][-MAX_KEPT:]) if kept else Kept(uuid.uuid4().hex, [pair])
            said += f" Saved; {len(kept.pairs)} pair{'s' * (len(kept.pairs) != 1)} of yours to download."
        offer = gr.DownloadButton(value=write_download(kept), interactive=True) if kept else gr.skip()
        return [said, None, kept, offer, *[gr.Button(interactive=False)] * len(CHOICES)]


def ready_again() -> list[gr.Button]:
    """Return the buttons Compare and Stop as they are while nothing runs."""
    return [gr.Button(interactive=True), gr.Button(interactive=False)]


def write_download(kept: Kept) -> str:
    """Write a visitor's pairs to a file and return its path, from where Gradio copies it to serve it."""
    path = Path(DOWNLOADS.name) / kept.name / "pairs.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(map(as_line, kept.pairs)), encoding="utf-8")
    return str(path)


def compare_page(bots: dict[str, Bot], preferences: Preferences) -> None:
    """Lay out the page and its endpoint for programs."""
    stream, names = ComparePage(bots, preferences).stream, list(bots)

    @in_a_sentence
    def compare_models(
        prompt: str,
        first_model: str = names[0],
        second_model: str = names[-1],
        system_prompt: str = "",
        temperature: float = 0.7,
        max_new_tokens: int = 128,
        seed: int = NEW_SEED,
    ) -> Iterator[dict[str, Any]]:
        """Answer one prompt with two of this page's models; streams both answers so far and a line about each.

        Args:
            prompt: What both answer.
            first_model: A name from the page's list.
            second_model: Another one, or the same for two draws.
            system_prompt: Who the models are, how they should answer.
            temperature: 0 is greedy.
            max_new_tokens: Longest answer.
            seed: The same one gives the same answers; -1 is a new one.
        """
        for name in (first_model, second_model):
            if name not in bots:
                raise gr.Error(f"There is no model {name[:40]!r}; there is {', '.join(bots)}.", print_exception=False)
        models = (first_model, second_model)
        for texts, about, used in stream(prompt, models, system_prompt, temperature, max_new_tokens, seed):
            yield {"models": models, "answers": texts, "about": about, "seed": used}

    gr.api(compare_models, api_name="compare", **LIMIT)
