"""The page `Look inside`: a text's tokens by surprise, what could come next, attention, and one step at a time."""

from typing import Any

import gradio as gr
from calls import in_a_sentence, on_gpu
from chat_model import MAX_MESSAGE_CHARS, MAX_TEMPERATURE, MAX_TOP_K, Bot, RefusedError
from inside import Attention, candidates, check_ids, draw, pieces, read_text, scores, surprise
from pictures import attention_map, bars, token_strip

PICK = """element.addEventListener("click", (event) => {
    const token = event.target.closest("button[data-at]");
    if (token) trigger("click", { at: Number(token.dataset.at) });
})"""
EMPTY = {"ids": [], "given": 0}


class InsidePage:
    """The page's parts, and how they follow each other: text, then position, then sampling and attention."""

    def __init__(self, bot: Bot, tab: gr.Tab) -> None:
        attention = Attention(bot)
        self.bot, self.text = bot, gr.State(EMPTY, time_to_live=3600)
        self.scores = on_gpu(lambda ids: scores(bot, ids))
        self.weights = on_gpu(lambda *place: attention.weights(*place))
        gr.Markdown("See a text as the model does: what it expected, what it would say next, and where it looks.")
        self.input = gr.Textbox(
            label="Text",
            value=bot.examples[0],
            max_length=MAX_MESSAGE_CHARS,
            max_lines=6,
            elem_id="inside-text",
        )
        with gr.Row():
            self.as_message = gr.Checkbox(True, label="As a chat message", info="With the control tokens around it")
            self.look = gr.Button("Look inside", variant="primary", elem_id="look")
            self.step = gr.Button("Draw the next token", elem_id="step")
        gr.Markdown(
            "### Tokens, by surprise\nThe stronger the colour, the less the model expected it. "
            "Pick one to see what could have come after it."
        )
        self.strip = gr.HTML(elem_id="strip", js_on_load=PICK, apply_default_css=False)
        gr.Markdown("### What comes next\nThe model's own shares, and what temperature and top-k make of them.")
        with gr.Row(elem_id="inside-columns"):
            with gr.Column(min_width=300):
                self.position = gr.Slider(
                    0, 1, 0, step=1, precision=0, label="After the token at position", elem_id="position"
                )
                with gr.Row():
                    self.temperature = gr.Slider(0, MAX_TEMPERATURE, 1, step=0.05, label="Temperature", min_width=120)
                    self.top_k = gr.Slider(0, MAX_TOP_K, 0, step=1, precision=0, label="Top-k", min_width=120)
            with gr.Column(min_width=300):
                self.bars = gr.HTML(elem_id="bars", apply_default_css=False)
        gr.Markdown(
            "### Where it looks\nA row for each token: the stronger the colour, the more it looks at that column's."
        )
        with gr.Row():
            layers, heads = range(1, attention.layers + 1), range(1, attention.heads + 1)
            self.layer = gr.Dropdown(list(layers), value=1, label="Layer", min_width=100)
            self.head = gr.Dropdown(list(heads), value=1, label="Head", min_width=100)
        self.map = gr.HTML(elem_id="map", apply_default_css=False)
        self.connect(tab)

    def connect(self, tab: gr.Tab) -> None:
        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        sampling, place = [self.temperature, self.top_k], [self.layer, self.head]
        everything = [self.text, self.position, self.strip, self.bars, self.map]
        gr.on(
            [tab.select, self.look.click, self.input.submit, self.as_message.change],
            in_a_sentence(self.open),
            [self.input, self.as_message, *sampling, *place],
            everything,
            trigger_mode="always_last",  # a click that comes while an older one is answered is not lost
            **hidden,
        )
        self.step.click(
            in_a_sentence(self.draw), [self.text, self.input, self.as_message, *sampling, *place], everything, **hidden
        )
        self.strip.click(in_a_sentence(self.pick), self.text, self.position, **hidden)
        self.position.change(
            in_a_sentence(self.move),
            [self.text, self.position, *sampling, *place],
            [self.strip, self.bars, self.map],
            trigger_mode="always_last",
            **hidden,
        )
        for control in sampling:
            control.change(
                in_a_sentence(self.expect),
                [self.text, self.position, *sampling],
                self.bars,
                trigger_mode="always_last",
                **hidden,
            )
        for control in place:
            control.change(in_a_sentence(self.attend), [self.text, self.position, *place], self.map, **hidden)

    def open(self, text: str, as_message: bool, temperature: float, top_k: int, layer: int, head: int) -> list[Any]:
        """Read a text and look at its end."""
        ids = read_text(self.bot, text, as_message)
        return self.show({"ids": ids, "given": len(ids)}, temperature, top_k, layer, head)

    def draw(
        self, state: dict[str, Any], text: str, as_message: bool, temperature: float, top_k: int, layer: int, head: int
    ) -> list[Any]:
        """Add a token, drawn with the page's sampling."""
        if not state["ids"]:
            ids = read_text(self.bot, text, as_message)
            state = {"ids": ids, "given": len(ids)}
        token = draw(self.scores(state["ids"])[-1], temperature, int(top_k))
        state = {"ids": check_ids(self.bot, [*state["ids"], token]), "given": state["given"]}
        return self.show(state, temperature, top_k, layer, head)

    def show(self, state: dict[str, Any], temperature: float, top_k: int, layer: int, head: int) -> list[Any]:
        last = len(state["ids"]) - 1
        position = gr.Slider(value=last, maximum=max(last, 1))
        return [state, position, *self.move(state, last, temperature, top_k, layer, head)]

    def pick(self, state: dict[str, Any], event: gr.EventData) -> int:
        """Return the position of the token that was clicked."""
        return self.check_position(state, event.at)

    def move(
        self, state: dict[str, Any], position: int, temperature: float, top_k: int, layer: int, head: int
    ) -> list[Any]:
        """Show everything as seen from a position."""
        ids = state["ids"]
        position = self.check_position(state, position)
        logits_TV, texts = self.scores(ids), pieces(self.bot, ids)
        strip = token_strip(texts, surprise(logits_TV, ids), position, state["given"])
        rows = candidates(self.bot, logits_TV[position], temperature, int(top_k))
        drawn = bars([(row.text, row.share, row.reshaped) for row in rows])
        return [strip, drawn, self.attend(state, position, layer, head)]

    def expect(self, state: dict[str, Any], position: int, temperature: float, top_k: int) -> str:
        """Show the next tokens' shares at a position."""
        logits_V = self.scores(state["ids"])[self.check_position(state, position)]
        rows = candidates(self.bot, logits_V, temperature, int(top_k))
        return bars([(row.text, row.share, row.reshaped) for row in rows])

    def attend(self, state: dict[str, Any], position: int, layer: int, head: int) -> str:
        """Show the attention of a layer's head."""
        position = self.check_position(state, position)
        weights = self.weights(state["ids"], int(layer) - 1, int(head) - 1)
        return attention_map(weights.tolist(), pieces(self.bot, state["ids"]), position)

    def check_position(self, state: dict[str, Any], position: Any) -> int:
        if not state["ids"]:
            raise RefusedError("There is no text yet; press Look inside first.")
        if not isinstance(position, int | float) or not 0 <= position < len(state["ids"]):
            raise RefusedError(f"There is no token at {position}.")
        return int(position)


def inside_page(bot: Bot, tab: gr.Tab) -> None:
    """Lay out the page, which looks at its text when its tab is opened, and its endpoint for programs."""
    page = InsidePage(bot, tab)

    @in_a_sentence
    def look_inside(text: str, as_message: bool = True, temperature: float = 1.0, top_k: int = 0) -> dict[str, Any]:
        """Return a text's tokens with the surprise of each in bits, and the ten likeliest tokens after the last.

        Args:
            text: What to look into.
            as_message: Whether it is a message to the model, or text as it stands.
            temperature: Reshapes the distribution; 0 is greedy.
            top_k: Cuts it to the likeliest so many; 0 is off.
        """
        ids = read_text(bot, text, as_message)
        if not 0 <= temperature <= MAX_TEMPERATURE or not 0 <= top_k <= MAX_TOP_K:
            raise RefusedError(f"The temperature goes from 0 to {MAX_TEMPERATURE}, top-k from 0 to {MAX_TOP_K}.")
        logits_TV = page.scores(ids)
        each = zip(ids, pieces(bot, ids), surprise(logits_TV, ids), strict=True)
        rows = candidates(bot, logits_TV[-1], temperature, top_k)
        return {
            "tokens": [{"id": token, "text": text, "surprise": bits} for token, text, bits in each],
            "next": [{"id": row.token, "text": row.text, "share": row.share, "sampled": row.reshaped} for row in rows],
        }

    gr.api(look_inside, api_name="look_inside", concurrency_limit=2)
