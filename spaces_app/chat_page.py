"""The page `Chat`: conversations that stream, stop, are taken back, edited and kept in the reader's browser."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from calls import in_a_sentence, on_gpu
from chat_model import (
    MAX_MESSAGE_CHARS,
    MAX_PENALTY,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MIN_TOP_P,
    NEW_SEED,
    Bot,
    Sampling,
    answer,
    longest_answer,
    read_text,
)
from preferences import Preferences, make_thumb

ANSWERS_AT_ONCE = 8  # the others wait in the queue
THUMBS = ("Like", "Dislike")  # Gradio draws these two words as thumbs
KEPT_OF_A_THUMB = "each thumb is saved: the conversation up to the answer, the answer, and whether it was good"
LIMIT = {"concurrency_limit": ANSWERS_AT_ONCE, "concurrency_id": "answers"}


def make_chat(bot: Bot) -> Any:
    """Return the function that answers, for the page and for programs."""
    start = bot.defaults

    def chat(
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str = "",
        temperature: float = start.temperature,
        top_k: int = start.top_k,
        top_p: float = start.top_p,
        repetition_penalty: float = start.repetition_penalty,
        max_new_tokens: int = start.max_new_tokens,
        seed: int | None = NEW_SEED,
    ) -> Iterator[tuple[str, str]]:
        """Answer a message; streams the answer so far, and a line with its speed and seed.

        Args:
            message: What to answer.
            history: Earlier messages, each with role and content.
            system_prompt: Who the model is, how it should answer.
            temperature: 0 is greedy, 1 the model's own distribution.
            top_k: Draw from the likeliest so many tokens; 0 is off.
            top_p: Draw from the likeliest tokens that have this share; 1 is off.
            repetition_penalty: 1 is off.
            max_new_tokens: Longest answer.
            seed: The same one gives the same answer; -1 is a new one.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, max_new_tokens)
        yield from answer(bot, message, history or [], system_prompt, sampling, seed)

    return in_a_sentence(on_gpu(chat))


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
        top_p = gr.Slider(MIN_TOP_P, 1, start.top_p, step=0.01, label="Top-p", info="1 is off")
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


def prompt_of_link(request: gr.Request) -> Any:
    """Return the prompt in the page's address, `?prompt=...`: it is filled in, and sent by the reader."""
    return request.query_params.get("prompt", "")[:MAX_MESSAGE_CHARS] or gr.skip()


def make_thumbs(bot: Bot, preferences: Preferences) -> Any:
    """Return what happens at a thumb: it is saved if the visitor agreed."""

    def thumb(history: list[dict[str, Any]], system: str, consent: bool, clicked: gr.LikeData) -> str:
        if clicked.liked not in (True, False):
            return ""  # taken back
        if not consent:
            return "Thanks. Not saved: tick the box below to have it saved."
        said = [{"role": message["role"], "content": read_text(message["content"])} for message in history]
        at = clicked.index if isinstance(clicked.index, int) else clicked.index[0]
        before, answer = said[:at], said[at]["content"] if at < len(said) else ""
        if not before or not answer.strip():
            return "Not saved: there is no answer to a question."
        meta = {"model": bot.name, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        preferences.save("thumbs", make_thumb(before, (system or "").strip(), answer, bool(clicked.liked), meta))
        return "Saved. Thank you."

    return in_a_sentence(thumb)


def chat_page(bot: Bot, page: gr.Blocks, preferences: Preferences) -> None:
    """Lay out the chat: conversation, message, a line on the answer, and the controls."""
    conversation = gr.Column()
    status = gr.Markdown("", label="About the answer", elem_id="status")
    with gr.Accordion("System prompt and sampling", open=False):
        controls = settings(bot)
    consent = gr.Checkbox(
        False, label="Save my thumbs", info=preferences.consent(KEPT_OF_A_THUMB), elem_id="consent-thumbs"
    )
    chat = make_chat(bot)
    message = gr.Textbox(
        label="Message",
        elem_id="message",
        placeholder="Write a message",
        max_length=MAX_MESSAGE_CHARS,
        max_lines=8,
        submit_btn="Send",
        stop_btn="Stop",
        autofocus=True,
        render=False,
    )
    with conversation:
        interface = gr.ChatInterface(
            chat,
            chatbot=gr.Chatbot(
                label="Conversation",
                elem_id="conversation",
                height="56vh",
                buttons=["copy", "copy_all"],
                feedback_options=THUMBS,
                sanitize_html=True,
                latex_delimiters=[],
            ),
            textbox=message,
            additional_inputs=controls,
            additional_outputs=[status],
            examples=[[text] for text in bot.examples],
            cache_examples=False,
            editable=True,
            save_history=True,
            concurrency_limit=ANSWERS_AT_ONCE,
            flagging_mode="never",
            show_progress="hidden",
            fill_height=False,
            api_name="page_chat",
            api_visibility="private",
        )
    # A key of their own for each model, and one that outlives this process: a restart must not lose conversations.
    # The state's encryption hides nothing, since its secret is in the page.
    interface.saved_conversations.storage_key = f"conversations of {bot.name}"
    interface.saved_conversations.secret = "conversations"
    interface.chatbot.like(
        make_thumbs(bot, preferences),
        [interface.chatbot, controls[0], consent],
        status,
        api_visibility="private",
        show_progress="hidden",
        queue=False,
    )
    page.load(prompt_of_link, None, message, api_visibility="private", show_progress="hidden", queue=False)
    gr.api(chat, api_name="chat", **LIMIT)
