"""Talks to a model on the command line: a chat with streaming, history and system prompt, and plain continuation.

What a person types is text, never a control token. In a pipe each line is a message, whatever it begins with, and only
answers are printed: commands are for a person at a terminal.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TextStreamer

from hf_scratch.hub.client import call, find_model

from . import fast_generate
from .tokenizer import Message, encode_prompt, encode_texts, require_fit

MIN_ROOM = 16  # tokens left for an answer; older turns are left out before that
# A line that is one of the commands, or a word like them that was mistyped; a path, say, begins a message.
COMMAND = re.compile(r"/(reset|save|system)( .*)?|/[a-z]+", re.DOTALL)
HELP = "/reset begins anew, /save FILE writes the conversation, /system TEXT sets the system prompt, /exit ends."


@dataclass(frozen=True)
class Speaker:
    """A loaded model with its tokenizer."""

    model: Any  # a transformers model that generates; the classes' own types know too little of generation
    tokenizer: Any

    @property
    def context(self) -> int:
        """Tokens that the model reads at once, prompt and answer."""
        return self.model.config.get_text_config().max_position_embeddings


def load_speaker(model: str, revision: str, trust_remote_code: bool) -> Speaker:
    """Load a model from a folder or the Hub.

    Raises:
        ValueError: There is none, it comes with code of its own that was not trusted, or its tokenizer has more
            tokens than it.
    """
    find_model(model)
    on_gpu, what = torch.cuda.is_available(), f"loading {model}"
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = call(what, AutoConfig.from_pretrained, model, **options)
    # A CPU computes in bfloat16 many times slower than in float32; quantized weights are no plain numbers.
    dtype = "auto" if on_gpu or "quantization_config" in config.to_dict() else torch.float32
    loaded = call(what, AutoModelForCausalLM.from_pretrained, model, dtype=dtype, **options)
    tokenizer = call(what, AutoTokenizer.from_pretrained, model, **options)
    require_fit(tokenizer, loaded)
    return Speaker(loaded.eval().to("cuda" if on_gpu else "cpu"), tokenizer)


# ---- chat ----


def chat(speaker: Speaker, sampling: dict[str, Any], system: str, source: TextIO, sink: TextIO) -> None:
    """Read messages until the input ends, and stream the answers.

    Raises:
        ValueError: The model has no chat template.
    """
    if not speaker.tokenizer.chat_template:
        raise ValueError("the model has no chat template, it was not trained to chat; use `hf-scratch generate`.")
    at_terminal = source.isatty()
    if at_terminal:
        print(HELP, file=sink)
    history = begin(system)
    while (line := read_line(source, sink, "> " if at_terminal else "")) is not None:
        if at_terminal and line == "/exit":
            return
        if at_terminal and COMMAND.fullmatch(line):
            history, note = obey(line, history, lambda question: read_line(source, sink, question) or "")
            print(note, file=sink)
        elif line:
            try:
                history = answer(speaker, sampling, [*history, {"role": "user", "content": line}], sink)
            except ValueError as error:
                print(f"not answered: {error}", file=sink if at_terminal else sys.stderr)


def begin(system: str) -> list[Message]:
    """Return a conversation in which nobody has said anything yet."""
    return [{"role": "system", "content": system}] if system else []


def read_line(source: TextIO, sink: TextIO, prompt: str) -> str | None:
    """Return the next line without spaces around it, None at the end."""
    print(prompt, end="", file=sink, flush=True)
    line = source.readline()
    return line.strip() if line else None


def obey(line: str, history: list[Message], ask: Callable[[str], str]) -> tuple[list[Message], str]:
    """Carry out a command; return the conversation and what to say.

    Args:
        ask: Puts a question to the person and returns the answer.
    """
    command, _, rest = line.partition(" ")
    if command == "/reset":
        return [message for message in history if message["role"] == "system"], "The conversation begins anew."
    if command == "/system":
        return begin(rest.strip()), "The system prompt is set; the conversation begins anew."
    if command == "/save" and rest.strip():
        return history, save(history, Path(rest.strip()).expanduser(), ask)
    return history, HELP


def save(history: list[Message], path: Path, ask: Callable[[str], str]) -> str:
    """Write the conversation into a file, over another one only if the person says so; return what to say."""
    if path.exists() and ask(f"{path} exists; write over it? [y/N] ").lower() not in ("y", "yes"):
        return f"{path} is as it was."
    try:
        path.write_text(json.dumps({"messages": history}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        return f"{path} cannot be written: {error}."
    return f"{len(history)} messages are in {path}."


def answer(speaker: Speaker, sampling: dict[str, Any], history: list[Message], sink: TextIO) -> list[Message]:
    """Stream the answer to the last message and return the conversation with it."""
    ids = fit(speaker, history)
    text = generate(speaker, sampling, ids, sink)
    return [*history, {"role": "assistant", "content": text}]


def fit(speaker: Speaker, history: list[Message]) -> list[int]:
    """Encode the conversation, without its oldest turns where the model cannot read them all.

    Raises:
        ValueError: The last message is too long by itself.
    """
    system = [message for message in history[:1] if message["role"] == "system"]
    turns = history[len(system) :]
    while len(ids := encode_prompt(speaker.tokenizer, [*system, *turns])) + MIN_ROOM > speaker.context:
        if len(turns) == 1:
            raise ValueError(f"the message has {len(ids):,} tokens, the model reads {speaker.context:,}; shorten it.")
        turns = turns[2:]
    return ids


# ---- generation ----


def continue_text(speaker: Speaker, sampling: dict[str, Any], prompt: str, sink: TextIO) -> None:
    """Print the prompt and stream what the model makes follow.

    Raises:
        ValueError: The prompt is longer than what the model reads, or there is nothing to begin with.
    """
    start = [speaker.tokenizer.bos_token_id] if speaker.tokenizer.bos_token_id is not None else []
    ids = [*start, *(encode_texts(speaker.tokenizer, [prompt])[0] if prompt else [])]
    if not ids:
        raise ValueError("the prompt is empty; write how the text begins.")
    if len(ids) >= speaker.context:
        raise ValueError(f"the prompt has {len(ids):,} tokens, the model reads {speaker.context:,}; shorten it.")
    print(prompt, end="", file=sink, flush=True)
    generate(speaker, sampling, ids, sink)


class Printer(TextStreamer):
    """Prints what is generated as it comes, to a file of one's choice."""

    def __init__(self, tokenizer: Any, sink: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.sink = sink

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print the next words."""
        print(text, end="\n" if stream_end else "", file=self.sink, flush=True)


def generate(speaker: Speaker, sampling: dict[str, Any], ids: list[int], sink: TextIO) -> str:
    """Stream the continuation of the tokens and return its text."""
    if sampling["seed"] is not None:
        torch.manual_seed(sampling["seed"])
    how: dict[str, Any] = {}
    if (temperature := sampling["temperature"]) is not None:
        if temperature < 0:
            raise ValueError(f"--temperature {temperature} is below 0; 0 is greedy, 1 draws as the model learnt.")
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    room = min(sampling["max_new_tokens"], speaker.context - len(ids))
    prompt = torch.tensor([ids], device=speaker.model.device)
    with torch.inference_mode():
        output = fast_generate.generate(
            prompt,
            model=speaker.model,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=room,
            streamer=Printer(speaker.tokenizer, sink),
            **how,
        )
    return speaker.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
