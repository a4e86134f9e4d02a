"""What a model makes of a text: its tokens, how much each surprised it, what could come next, and where it looks.

Computes; `inside_page` shows. Nothing here changes the model that answers.
"""

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from chat_model import Bot, RefusedError, check_text, encode

MAX_TOKENS = 160  # of a text that is looked into: its attention is a picture of their square
TOP = 10


@dataclass(frozen=True)
class Candidate:
    """A token that could come next: its text, and its share before and after temperature and top-k."""

    token: int
    text: str
    share: float
    reshaped: float


def read_text(bot: Bot, text: str, as_message: bool) -> list[int]:
    """Encode a text, as a message up to where the answer begins or as it stands after a start token.

    Raises:
        RefusedError: Nothing, or more than `MAX_TOKENS`.
    """
    text = check_text(text or "", "The text")
    if not text:
        raise RefusedError("The text is empty; write something first.")
    if as_message:
        ids = encode(bot, "", [], text)
    else:
        start = bot.tokenizer.bos_token_id
        ids = bot.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = ids if start is None else [start, *ids]
    return check_ids(bot, ids)


def check_ids(bot: Bot, ids: Sequence[int]) -> list[int]:
    """Return the ids if they are not too many to be looked into."""
    most = min(MAX_TOKENS, bot.context)
    if len(ids) > most:
        raise RefusedError(
            f"The text has {len(ids):,} tokens; {most} is the most that can be looked into. Shorten it."
        )
    return list(ids)


def pieces(bot: Bot, ids: Sequence[int]) -> list[str]:
    """Return the text of each token; a part of a character is written as its bytes."""
    return [show_piece(bot.tokenizer.decode([token]), bot.tokenizer.convert_ids_to_tokens(token)) for token in ids]


def show_piece(text: str, token: str) -> str:
    return f"⟨{token}⟩" if "\ufffd" in text or not text else text.replace("\n", "⏎").replace("\t", "⇥")


@torch.inference_mode()
def scores(bot: Bot, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits of the next token at each position, (T, V) in float32 on the CPU."""
    return bot.model(torch.tensor([list(ids)], device=bot.model.device), use_cache=False).logits[0].float().cpu()


def surprise(logits_TV: torch.Tensor, ids: Sequence[int]) -> list[float | None]:
    """Return -log2 p of each token given those before it; the first one was not predicted."""
    shares = logits_TV[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
    return [None, *(-shares / math.log(2)).clamp_min(0).tolist()]


def reshape(logits_V: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """Return the shares from which a token is drawn at this temperature (0 is greedy) and top-k (0 is off)."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits_V.argmax(), len(logits_V)).float()
    logits_V = logits_V / temperature
    if 0 < top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -math.inf)
    return logits_V.softmax(-1)


def candidates(bot: Bot, logits_V: torch.Tensor, temperature: float, top_k: int) -> list[Candidate]:
    """Return the likeliest next tokens."""
    shares, reshaped = logits_V.softmax(-1), reshape(logits_V, temperature, top_k)
    best = shares.topk(min(TOP, len(shares))).indices.tolist()
    texts = pieces(bot, best)
    return [Candidate(i, text, float(shares[i]), float(reshaped[i])) for i, text in zip(best, texts, strict=True)]


def draw(logits_V: torch.Tensor, temperature: float, top_k: int) -> int:
    """Draw the next token; each call draws anew."""
    generator = torch.Generator()
    generator.seed()
    return int(torch.multinomial(reshape(logits_V, temperature, top_k), 1, generator=generator))


class Attention:
    """A twin of the model that gives its attention weights, which fast kernels do not; it shares the parameters."""

    def __init__(self, bot: Bot) -> None:
        self.bot, self.lock, self.twin = bot, threading.Lock(), None
        config = bot.model.config.get_text_config()
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads

    def make_twin(self) -> Any:
        shared = {id(tensor): tensor for tensor in (*self.bot.model.parameters(), *self.bot.model.buffers())}
        twin = copy.deepcopy(self.bot.model, memo=shared)
        twin.set_attn_implementation("eager")
        return twin

    @torch.inference_mode()
    def weights(self, ids: Sequence[int], layer: int, head: int) -> torch.Tensor:
        """Return how much each position looks at each, (T, T) with rows that sum to 1."""
        with self.lock:
            self.twin = self.twin or self.make_twin()
            inputs = torch.tensor([list(ids)], device=self.bot.model.device)
            found = self.twin(inputs, use_cache=False, output_attentions=True).attentions
        return found[layer][0, head].float().cpu()
