"""What the pages wrap around a call: an error is one sentence for the visitor and a story in the log; and ZeroGPU."""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from chat_model import RefusedError

GPU_SECONDS = 60  # that ZeroGPU may lend a GPU for one answer; what asks for less waits less

try:
    # Not a requirement: ZeroGPU has it, and lends a GPU to what it decorates.
    on_gpu = importlib.import_module("spaces").GPU(duration=GPU_SECONDS)
except ImportError:

    def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
        return function


LOG = logging.getLogger("app")


def in_a_sentence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what a page calls, a function or a generator, so that its errors are sentences."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise explain(error) from None

    @functools.wraps(function)
    def iterate(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from function(*args, **kwargs)
        except Exception as error:
            raise explain(error) from None

    return iterate if inspect.isgeneratorfunction(function) else call


def explain(error: Exception) -> gr.Error:
    """Return the error to show; one that is not the visitor's own doing is logged."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, RefusedError):
        return gr.Error(str(error), print_exception=False)
    LOG.error("an answer failed", exc_info=error)
    return gr.Error("The model could not answer; the app's log says why.", print_exception=False)
