"""A chat model and its answers: loads a folder or a Hub id, fits a conversation to what it reads, streams the answer.

Knows nothing of the page. The model loads as any user would load it, with the code that ships with its weights.
"""

import copy
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from huggingface_hub import ModelCard
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils.hub import cached_file

MAX_MESSAGE_CHARS = 4000
MAX_TURNS = 50  # of the conversation that the model is shown
MAX_TURN_CHARS = 50_000  # more than a question and the longest answer have
MAX_NEW_TOKENS = 2048
MAX_TEMPERATURE, MAX_TOP_K, MIN_TOP_P, MAX_PENALTY = 2.0, 200, 0.05, 2.0
NEW_SEED, MAX_SEED = -1, 2**31 - 1
MIN_ROOM = 16  # tokens: a prompt that leaves less for the answer is refused
UPDATE_SECONDS = 0.07  # an update of a page costs more than a token of a small model, and 14 a second look smooth
EXAMPLES = (
    "Tell me a story about a fox named Mia who dropped a red kite into a pond.",
    "Write a story about a baker who lost a little key in the forest.",
    "Please tell me a story with a happy ending.",
)

Turn = tuple[str, str]


class RefusedError(ValueError):
    """What somebody asked for cannot be answered; the message is for them to read."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest, top-k 0 and top-p 1 leave all tokens in."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    max_new_tokens: int


@dataclass(frozen=True)
class Bot:
    """A loaded model and what the page says about it."""

    model: Any  # a transformers model that generates; the classes' own types know too little of generation
    tokenizer: Any
    name: str
    description: str
    card: str  # Markdown
    examples: Sequence[str]
    context: int  # tokens that the model reads at once, prompt and answer
    defaults: Sampling


@dataclass(frozen=True)
class Progress:
    """An answer as far as it has come: token ids, when each came (s, `time.perf_counter`), and whether that is all."""

    ids: list[int]
    times: list[float]
    done: bool


# ---------------------------------------------------------------- the model


def load_bot(model_id: str, revision: str | None) -> Bot:
    """Load model, tokenizer and card from a folder or the Hub.

    Raises:
        ValueError: There is no such model, or it is not a chat model.
    """
    on_gpu = torch.cuda.is_available()
    try:
        # A CPU computes in bfloat16 many times slower than in float32, whatever the checkpoint was saved in.
        model = AutoModelForCausalLM.from_pretrained(
            model_id, revision=revision, trust_remote_code=True, dtype="auto" if on_gpu else torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(model_id, revision=revision, trust_remote_code=True)
        card_file = cached_file(model_id, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"MODEL_ID={model_id} cannot be loaded: {reason}.") from error
    if not tokenizer.chat_template:
        raise ValueError(f"MODEL_ID={model_id} has no chat template; give a model that was trained to chat.")
    model.eval().to("cuda" if on_gpu else "cpu")
    name, examples, card = read_card(card_file, fallback=Path(model_id).resolve().name)
    context = model.config.get_text_config().max_position_embeddings
    defaults = take_sampling(model, context)
    about = (
        f"A language model of type `{model.config.model_type}` with {count(model.num_parameters())} parameters. "
        f"It reads {context:,} tokens at once and runs on a {'GPU' if on_gpu else 'CPU'}."
    )
    return Bot(model, tokenizer, name, about, card, examples, context, defaults)


def read_card(path: str | None, fallback: str) -> tuple[str, Sequence[str], str]:
    """Return the model's name, example prompts (`model_name` and `widget` of the card's metadata) and the card."""
    if path is None:
        return fallback, EXAMPLES, ""
    card = ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    data = card.data.to_dict()
    titles = [line[2:].strip() for line in card.text.splitlines() if line.startswith("# ")]
    name = data.get("model_name") or (titles + [fallback])[0]
    prompts = [item["text"] if "text" in item else item["messages"][-1]["content"] for item in data.get("widget", [])]
    # Pictures stand beside the card in its repository, from where this page does not serve them.
    text = "\n".join(line for line in card.text.splitlines() if not line.startswith("!["))
    return name, prompts or EXAMPLES, text


def take_sampling(model: Any, context: int) -> Sampling:
    """Return the sampling that the model asks for and take it out of the model: from now on the page decides."""
    asked = model.generation_config
    temperature = 0.7 if asked.temperature is None else asked.temperature
    defaults = Sampling(
        temperature=0.0 if asked.do_sample is False else min(temperature, MAX_TEMPERATURE),
        top_k=min(50 if asked.top_k is None else asked.top_k, MAX_TOP_K),
        top_p=1.0 if asked.top_p is None else asked.top_p,
        repetition_penalty=min(max(asked.repetition_penalty or 1.0, 1.0), MAX_PENALTY),
        max_new_tokens=min(asked.max_new_tokens or 256, longest_answer(context)),
    )
    model.generation_config = copy.deepcopy(asked)
    unset = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "max_length")
    for name in (*unset, "max_new_tokens"):
        setattr(model.generation_config, name, None)
    model.generation_config.do_sample = False
    return defaults


def longest_answer(context: int) -> int:
    """Return how many tokens an answer may have: half of what the model reads, so that a question fits too."""
    return min(MAX_NEW_TOKENS, context // 2)


def count(number: int) -> str:
    """Write a number of parameters with three digits, as 1.23M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


# ---------------------------------------------------------------- generation


class GumbelNoise(LogitsProcessor):
    """Make the largest score a sample of the softmax (Gumbel-max, arXiv:1411.0030).

    `generate` draws from the one generator of the process, where answers to several people would mix their seeds.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(int(seed))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        exponential = torch.empty_like(scores).exponential_(generator=self.generator)
        return scores - exponential.clamp_min(torch.finfo(scores.dtype).tiny).log()


def processors(sampling: Sampling, seed: int, device: torch.device) -> LogitsProcessorList:
    """Return what happens to the scores before the largest one is taken."""
    chain = LogitsProcessorList()
    if sampling.temperature == 0:
        return chain
    chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        chain.append(TopKLogitsWarper(int(sampling.top_k)))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(float(sampling.top_p)))
    chain.append(GumbelNoise(seed, device))
    return chain


class TokenQueue(BaseStreamer):
    """Hands tokens and their times to another thread; after the last one comes None, or the error that ended it."""

    def __init__(self) -> None:
        self.items: SimpleQueue[tuple[int, float] | Exception | None] = SimpleQueue()
        self.prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_came:
            self.items.put((int(value), time.perf_counter()))
        self.prompt_came = True

    def end(self) -> None:
        self.items.put(None)

    def fail(self, error: Exception) -> None:
        self.items.put(error)

    def take(self) -> list[tuple[int, float] | Exception | None]:
        """Wait for one item, then return all that are there."""
        first = self.items.get()
        return [first, *(self.items.get() for _ in range(self.items.qsize()))]


def generate(bot: Bot, prompt: list[int], sampling: Sampling, seed: int) -> Iterator[Progress]:
    """Generate in a thread of its own and yield the answer's tokens as they come, several at a time.

    When the caller closes the iterator, as it happens when a reader stops the answer or leaves, generation stops
    at the next token.
    """
    tokens, left = TokenQueue(), threading.Event()

    def run() -> None:
        try:
            ids = torch.tensor([prompt], device=bot.model.device)
            bot.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens, repetition_penalty=float(sampling.repetition_penalty)
                ),
                logits_processor=processors(sampling, seed, bot.model.device),
                stopping_criteria=StoppingCriteriaList(
                    [lambda ids, scores: torch.full((1,), left.is_set(), device=ids.device)]
                ),
                streamer=tokens,
            )
        except Exception as error:
            tokens.fail(error)

    threading.Thread(target=run, name="answer", daemon=True).start()
    progress = Progress([], [], done=False)
    try:
        while not progress.done:
            progress = extend(progress, tokens.take())
            yield progress
            time.sleep(0 if progress.done else UPDATE_SECONDS)
    finally:
        left.set()


def extend(progress: Progress, items: list[tuple[int, float] | Exception | None]) -> Progress:
    """Return the progress with the new tokens, and raise what ended the generation if that was an error."""
    for item in items:
        if isinstance(item, Exception):
            raise item
    new = [item for item in items if isinstance(item, tuple)]
    ids = [*progress.ids, *(token for token, _ in new)]
    return Progress(ids, [*progress.times, *(at for _, at in new)], done=items[-1] is None)


# ---------------------------------------------------------------- the conversation


def read_turns(history: Sequence[dict[str, Any]]) -> list[Turn]:
    """Return the last questions that have an answer, oldest first; whatever else a page sends along is left out."""
    try:
        texts = [(message["role"], read_text(message["content"])) for message in history]
    except (KeyError, TypeError):
        raise RefusedError("The history is not a list of messages with role and content.") from None
    return [
        (said, answered)
        for (role, said), (next_role, answered) in zip(texts, texts[1:], strict=False)
        if (role, next_role) == ("user", "assistant") and said and answered and len(said + answered) <= MAX_TURN_CHARS
    ][-MAX_TURNS:]


def read_text(content: Any) -> str:
    """Return the text of a message, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def check_text(text: str, what: str) -> str:
    """Return the text without space around it.

    Raises:
        RefusedError: It is too long, or cannot be written as UTF-8.
    """
    if len(text) > MAX_MESSAGE_CHARS:
        raise RefusedError(f"{what} has {len(text):,} characters; {MAX_MESSAGE_CHARS:,} is the most. Shorten it.")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise RefusedError(f"{what} holds half of a character (a lone surrogate); remove it.")
    return text.strip()


def check_sampling(sampling: Sampling) -> None:
    """Raise RefusedError for a setting that the page's controls do not have."""
    for what, value, low, high in (
        ("The temperature", sampling.temperature, 0, MAX_TEMPERATURE),
        ("Top-k", sampling.top_k, 0, MAX_TOP_K),
        ("Top-p", sampling.top_p, MIN_TOP_P, 1),
        ("The repetition penalty", sampling.repetition_penalty, 1, MAX_PENALTY),
        ("The longest answer", sampling.max_new_tokens, 1, MAX_NEW_TOKENS),
    ):
        check_number(what, value, low, high)


def check_number(what: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise RefusedError(f"{what} is {value!r:.40}; it must be a number from {low} to {high}.")


def fit_prompt(bot: Bot, system: str, turns: list[Turn], message: str, room: int) -> tuple[list[int], int]:
    """Encode the conversation so that `room` tokens are left for the answer, without the oldest turns if need be.

    Returns:
        Token ids of the prompt, and how many turns were left out.
    """
    for dropped in range(len(turns) + 1):
        ids = encode(bot, system, turns[dropped:], message)
        if len(ids) + room <= bot.context:
            return ids, dropped
    if len(ids) + MIN_ROOM > bot.context:
        raise RefusedError(
            f"Message and system prompt have {len(ids):,} tokens; the model reads {bot.context:,}, "
            "its answer included. Shorten them."
        )
    return ids, len(turns)


def encode(bot: Bot, system: str, turns: Sequence[Turn], message: str) -> list[int]:
    """Encode up to the place where the answer begins; a control token that somebody spells out stays plain text."""
    messages = [{"role": "system", "content": system}] if system else []
    for said, answered in turns:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": message})
    try:
        return bot.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True
        )["input_ids"]
    except TemplateError as error:
        raise RefusedError(f"The model's chat template refuses this: {error}.") from None


def answer(
    bot: Bot, message: str, history: list[dict[str, Any]], system: str, sampling: Sampling, seed: int | None
) -> Iterator[tuple[str, str]]:
    """Yield the answer so far and a line about it: tokens, speed, seed, and what was left out or cut.

    Raises:
        RefusedError: Something asked for cannot be done.
    """
    seed = random.randint(0, MAX_SEED) if seed in (None, NEW_SEED) else seed
    message, system = check_text(message or "", "The message"), check_text(system or "", "The system prompt")
    if not message:
        raise RefusedError("The message is empty; write something first.")
    check_sampling(sampling)
    check_number("The seed", seed, 0, MAX_SEED)
    room = min(sampling.max_new_tokens, longest_answer(bot.context))
    prompt, dropped = fit_prompt(bot, system, read_turns(history or []), message, int(room))
    room = min(room, bot.context - len(prompt))
    started = time.perf_counter()
    for progress in generate(bot, prompt, replace(sampling, max_new_tokens=room), seed):
        text = bot.tokenizer.decode(progress.ids, skip_special_tokens=True)
        cut = progress.done and len(progress.ids) == room and progress.ids[-1] not in stop_ids(bot)
        # The bytes of one character may come in several tokens.
        yield text if progress.done else text.rstrip("\ufffd"), describe(progress.times, started, seed, dropped, cut)


def stop_ids(bot: Bot) -> list[int]:
    """Return the tokens that end an answer."""
    ids = bot.model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


def describe(times: Sequence[float], started: float, seed: int, dropped: int, cut: bool) -> str:
    """Say in a line how the answer went; the speed counts from the first token on, without reading the prompt."""
    parts = [f"{len(times)} token{'s' * (len(times) != 1)}"]
    if len(times) > 1:
        parts.append(f"{(len(times) - 1) / (times[-1] - times[0]):.0f} tokens/s")
    if times:
        parts.append(f"first after {times[0] - started:.2f} s")
    parts.append(f"seed {seed}")
    if cut:
        parts.append("cut at the longest answer")
    if dropped:
        parts.append(f"the oldest {dropped} turn{'s' * (dropped != 1)} did not fit and were left out")
    return " · ".join(parts)
