"""A page to talk to a chat model: streaming, stop, retry, undo, edit, system prompt and sampling controls.

MODEL_ID names a model folder or a Hub id; nothing of the project that trained it is needed. Once the model is there,
no request leaves the machine.

    MODEL_ID=runs/quickstart/release/model python spaces_app/app.py
    MODEL_ID=name/model MODEL_REVISION=main GRADIO_SERVER_PORT=7861 python spaces_app/app.py
"""

import functools
import logging
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

# Read when these packages are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from chat_model import (
    MAX_MESSAGE_CHARS,
    MAX_PENALTY,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    Bot,
    RefusedError,
    Sampling,
    answer,
    load_bot,
    longest_answer,
)

LOG = logging.getLogger("app")

MAX_WAITING = 32  # people in the queue; the next one is told to come back
ANSWERS_AT_ONCE = 2
NEW_SEED, MAX_SEED = -1, 2**31 - 1


def chat(
    bot: Bot,
    message: str,
    history: list[dict[str, Any]],
    system_prompt: str,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    max_new_tokens: int,
    seed: int | None,
) -> Iterator[tuple[str, str]]:
    """Answer a message, as a generator of the answer so far and a line about it; errors are sentences."""
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, max_new_tokens)
    try:
        seed = random.randint(0, MAX_SEED) if seed in (None, NEW_SEED) else seed
        yield from answer(bot, message, history, system_prompt, sampling, seed)
    except RefusedError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception:
        LOG.exception("an answer failed")
        raise gr.Error("The model could not answer; the app's log says why.", print_exception=False) from None


def settings(bot: Bot) -> list[str | gr.components.Component]:
    """Lay out the controls and return them in the order in which `chat` takes them."""
    start, longest = bot.defaults, longest_answer(bot.context)
    system = gr.Textbox(
        label="System prompt",
        placeholder="Optional: who the model is, how it should answer.",
        value="",
        lines=2,
        max_lines=6,
        max_length=MAX_MESSAGE_CHARS,
    )
    with gr.Row():
        temperature = gr.Slider(
            0, MAX_TEMPERATURE, start.temperature, step=0.05, label="Temperature", info="0 is greedy"
        )
        top_k = gr.Slider(0, MAX_TOP_K, start.top_k, step=1, precision=0, label="Top-k", info="0 is off")
        top_p = gr.Slider(0.05, 1, start.top_p, step=0.01, label="Top-p", info="1 is off")
    with gr.Row():
        penalty = gr.Slider(
            1, MAX_PENALTY, start.repetition_penalty, step=0.01, label="Repetition penalty", info="1 is off"
        )
        length = gr.Slider(
            1, longest, start.max_new_tokens, step=1, precision=0, label="Longest answer", info="Tokens"
        )
        seed = gr.Number(
            NEW_SEED, label="Seed", info="-1 is a new one", precision=0, minimum=NEW_SEED, maximum=MAX_SEED
        )
    return [system, temperature, top_k, top_p, penalty, length, seed]


def chat_page(bot: Bot) -> None:
    """Lay out the chat: conversation, message, a line on the answer, and the controls."""
    conversation = gr.Column()
    status = gr.Markdown("", label="About the answer", elem_id="status")
    with gr.Accordion("System prompt and sampling", open=False):
        controls = settings(bot)
    with conversation:
        gr.ChatInterface(
            functools.partial(chat, bot),
            chatbot=gr.Chatbot(
                label="Conversation",
                elem_id="conversation",
                height="60vh",
                buttons=["copy", "copy_all"],
                sanitize_html=True,
                latex_delimiters=[],
            ),
            textbox=gr.Textbox(
                label="Message",
                elem_id="message",
                placeholder="Write a message",
                max_length=MAX_MESSAGE_CHARS,
                max_lines=8,
                submit_btn="Send",
                stop_btn="Stop",
                autofocus=True,
            ),
            additional_inputs=controls,
            additional_outputs=[status],
            examples=[[text] for text in bot.examples],
            cache_examples=False,
            editable=True,
            concurrency_limit=ANSWERS_AT_ONCE,
            flagging_mode="never",
            show_progress="hidden",
            fill_height=False,
            api_name="chat",
            api_description="Answer a message; streams the answer so far, and a line with its speed and seed.",
        )


# What a page may load: text of a model or a person is Markdown, which can hold the address of a picture elsewhere.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; base-uri 'self'"
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'


def theme() -> gr.themes.Base:
    """A calm look in the reader's own fonts; a web font would be a request to somebody else's server."""
    look = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md")
    # The stock greys of small text have too little contrast (WCAG asks for 4.5 to 1).
    look.set(
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    look.font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    look.font_mono = "ui-monospace, 'SF Mono', Consolas, monospace"
    return look


CSS = """
.gradio-container { max-width: 60rem !important; margin-inline: auto !important; }
#conversation .prose { overflow-wrap: anywhere; }
#message [data-testid="submit-button"] { background: var(--primary-700); color: white; }
footer .divider { display: none !important; }
#status { min-height: 1.5rem; }
#status * { font-size: var(--text-sm); }
#status [data-testid="status-tracker"].hide { display: none; }
"""


def build(bot: Bot) -> gr.Blocks:
    """Make the app; pages to come stand beside the chat as tabs."""
    with gr.Blocks(title=bot.name, analytics_enabled=False) as page:
        gr.Markdown(f"# {bot.name}\n{bot.description}")
        chat_page(bot)
    return page.queue(max_size=MAX_WAITING)


def main() -> None:
    """Load the model that the environment names and serve the page."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    model_id = os.environ.get("MODEL_ID", "").strip()
    if not model_id:
        sys.exit("app: MODEL_ID is not set; set it to a model folder or a Hub id, e.g. MODEL_ID=name/model.")
    try:
        bot = load_bot(model_id, os.environ.get("MODEL_REVISION") or None)
    except ValueError as error:
        sys.exit(f"app: {error}")
    for _ in answer(bot, "Hello", [], "", Sampling(1, 1, 1, 1, max_new_tokens=2), seed=0):
        pass  # The first answer of a process is slow; nobody should wait for it.
    build(bot).launch(theme=theme(), css=CSS, head=HEAD, footer_links=["api"], run_history=False, ssr_mode=False)


if __name__ == "__main__":
    main()
