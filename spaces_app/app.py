"""A page for one's own language model: chat with it, compare its stages, look inside it, see how it was trained.

MODEL_ID names a model folder or a Hub id; nothing of the project that trained it is needed. Once the models are there,
no request leaves the machine, unless the operator has pairs pushed to a data set.

    MODEL_ID=runs/quickstart/release/model python spaces_app/app.py
    MODEL_ID=name/model MODEL_REVISION=main GRADIO_SERVER_PORT=7861 python spaces_app/app.py
"""

import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path

# Read when these packages are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from chat_model import Bot, Sampling, answer, load_bot
from chat_page import chat_page
from compare_page import compare_page
from inside_page import inside_page
from look import CSS, HEAD, theme
from preferences import Preferences
from stages import load_stages
from training_page import Record, load_record, training_page

MAX_WAITING = 64  # people in the queue; the next one is told to come back
DAY = 24 * 60 * 60


def build(bots: dict[str, Bot], preferences: Preferences, record: Record) -> gr.Blocks:
    """Make the app of models, the released one first."""
    bot = next(iter(bots.values()))
    with gr.Blocks(title=bot.name, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        gr.Markdown(f"# {bot.name}\n{bot.description}", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_page(bot, page, preferences)
            with gr.Tab("Compare"):
                compare_page(bots, preferences)
            with gr.Tab("Look inside") as inside:
                inside_page(bot, inside)
            with gr.Tab("Training"):
                training_page(record, bot.card)
    return page.queue(max_size=MAX_WAITING)


def open_preferences() -> Preferences:
    """Return where pairs are kept, as the environment says."""
    folder = Path(os.environ.get("PREFERENCES_FOLDER") or "preferences")
    return Preferences(folder, os.environ.get("PREFERENCES_DATASET") or None, os.environ.get("HF_TOKEN") or None)


def main() -> None:
    """Load the models that the environment names and serve the page."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    for name in ("torchao", "torch.utils._pytree"):  # where it is installed, it warns of code for GPUs that it misses
        logging.getLogger(name).setLevel(logging.ERROR)
    model_id = os.environ.get("MODEL_ID", "").strip()
    if not model_id:
        sys.exit("app: MODEL_ID is not set; set it to a model folder or a Hub id, e.g. MODEL_ID=name/model.")
    revision = os.environ.get("MODEL_REVISION") or None
    try:
        bot = load_bot(model_id, revision)
        preferences = open_preferences()
    except ValueError as error:
        sys.exit(f"app: {error}")
    bots = load_stages(bot, model_id, os.environ.get("STAGES", ""))
    if bot.model.device.type == "cpu":  # ZeroGPU lends its GPU for calls from the page only
        for _ in answer(bot, "Hello", [], "", Sampling(1, 1, 1, 1, max_new_tokens=2), seed=0):
            pass  # The first answer of a process is slow; nobody should wait for it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # which is how a Space ends
    try:
        build(bots, preferences, load_record(model_id, revision)).launch(
            theme=theme(),
            css=CSS,
            head=HEAD,
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            mcp_server=importlib.util.find_spec("mcp") is not None,
        )
    finally:
        preferences.push()


if __name__ == "__main__":
    main()
