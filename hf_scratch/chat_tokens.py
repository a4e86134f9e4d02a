"""How a conversation becomes token ids: as the chat template renders it, with what people write in it as plain text.

The template sees every answer as it was written, since it may look for tokens in it: Qwen3's splits an answer at
`</think>`. Control tokens that were written and not rendered are marked for the tokenizer, which then encodes them as
text: all of them in what a user or system says, and the special ones in an answer. Tokens that are not special, such
as `<think>` and `<tool_call>`, are words that a model says, and stay tokens in its answers.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

from .clean_process import control_tokens

Encoded = tuple[list[int], list[int]]  # token ids, and 1 where an answer carries loss
Span = tuple[int, int]  # the characters of an answer, its end token included

BATCH = 1000  # conversations tokenized at once: enough to keep all cores busy
# The characters that transformers puts around a control token which is to become text.
START, END = mark_control_tokens(".", re.compile(r"\.")).split(".")
MARKED = re.compile(f"{START}([^{START}{END}]+){END}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template renders it, with marks around the control tokens that are text."""

    marked: str

    @cached_property
    def text(self) -> str:
        """The text without marks."""
        return unmarked(self.marked)

    @cached_property
    def control(self) -> str:
        """The text with blanks in place of the marked tokens, so that those of the template alone are left."""
        return unmarked(MARKED.sub(lambda found: " " * len(found[1]), self.marked))

    def is_whole(self) -> bool:
        """Whether no token was parted from its marks."""
        rest = MARKED.sub("", self.marked)
        return rest == unmarked(rest)

    def up_to(self, length: int) -> str:
        """Return the marked text of the first characters."""
        places = (place for place, character in enumerate(self.marked) if character not in (START, END))
        last = next(itertools.islice(places, length - 1, None)) if length else -1
        return self.marked[: last + 1 + self.marked.startswith(END, last + 1)]


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self.special, self.control = any_of(special), any_of(special | set(control_tokens(tokenizer)))

    @cached_property
    def end_token(self) -> str | None:
        """The token that the template writes behind an answer; None where it writes none."""
        answer = "Thirty-three."
        probe = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": answer}]
        try:
            behind = self.render(probe).text.rpartition(answer)[2]
        except (TemplateError, TypeError, ValueError):
            return None  # no template, or one for other conversations
        found = self.special.search(behind) or self.control.search(behind)
        return found[0] if found else None

    def is_spelled(self, message: Mapping[str, Any]) -> bool:
        """Whether a message spells a control token."""
        tokens = self.special if message["role"] == "assistant" else self.control
        return tokens.search(message["content"]) is not None

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False) -> Rendered:
        """Render a conversation, with marks that change nothing of it.

        An answer's token that the template looks for cannot be marked, and is what the template makes of it.

        Raises:
            TemplateError: The template refuses the conversation.
        """

        def attempt(marked: set[tuple[int, str]]) -> Rendered:
            shown = []
            for turn, message in enumerate(messages):
                of_answer = any_of(token for place, token in marked if place == turn)
                tokens = of_answer if message.get("role") == "assistant" else self.control
                shown.append(mark_control_tokens({k: v for k, v in message.items() if k != "weight"}, tokens))
            return Rendered(
                self.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=add_generation_prompt)
            )

        plain = attempt(set())
        spelled = {
            (turn, token)
            for turn, message in enumerate(messages)
            if message.get("role") == "assistant"
            for text in message.values()
            if isinstance(text, str)
            for token in self.special.findall(text)
        }
        if not spelled:
            return plain
        best, marked = attempt(spelled), spelled
        if best.is_whole() and best.text == plain.text:
            return best
        best, marked = plain, set()
        for token in sorted(spelled):
            tried = attempt(marked | {token})
            if tried.is_whole() and tried.text == plain.text:
                best, marked = tried, marked | {token}
        return best

    def answers(self, messages: Sequence[dict[str, Any]]) -> list[tuple[Rendered, list[Span]]]:
        """Render a conversation, and again for each answer that it shows otherwise than when it was the last one.

        Returns:
            Each rendering, and where in it each answer begins and its end token ends. An answer whose message has the
            weight 0 is left out.

        Raises:
            ValueError: The template changes the prompt when its answer is added, or ends an answer without a token.
            TemplateError: The template refuses the conversation.
        """
        whole = self.render(messages)
        found, spans = [], []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight") == 0:
                continue
            after = self.render(messages[: turn + 1]) if turn + 1 < len(messages) else whole
            start, end = self.last_span(messages[:turn], after)
            if whole.text[:end] == after.text[:end]:
                spans.append((start, end))
            else:
                found.append((after, [(start, end)]))
        return [*found, (whole, spans)] if spans or not found else found

    def last_span(self, prompt: Sequence[dict[str, Any]], after: Rendered) -> Span:
        """Return where the last answer begins and its end token ends."""
        before = self.render(prompt, add_generation_prompt=True).text
        start = len(before)
        if not after.text.startswith(before):
            # A generation prompt may open a thought that the answer does not have: DeepSeek-R1's ends with `<think>`.
            start = common(before, after.text)
            tokens = self.control.finditer(after.text)
            start = next((token.start() for token in tokens if token.start() < start < token.end()), start)
            if start < len(self.render(prompt).text) or not after.text.startswith(self.render(prompt).text):
                raise ValueError(
                    f"the chat template changes earlier text when turn {len(prompt) + 1} is added; "
                    "the assistant's tokens cannot be told from the rest. Use a template that only appends."
                )
        end = after.control.rfind(self.end_token, start) if self.end_token else -1
        if end < 0:
            raise ValueError("the chat template ends an answer without a special token; the model would never stop.")
        return start, end + len(self.end_token or "")

    def encode(self, rendered: Rendered | str) -> list[int]:
        """Encode a rendering, the marked control tokens as text."""
        marked = rendered if isinstance(rendered, str) else rendered.marked
        ids = self.tokenizer(marked, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
        return list(ids)

    def encode_spans(self, rendered: Rendered, spans: Sequence[Span]) -> Encoded:
        """Encode a rendering and mask its spans; an answer's first token may begin in the prompt before it."""
        ids = self.encode(rendered)
        mask = [0] * len(ids)
        for start, end in spans:
            first, last = (common(ids, self.encode(rendered.up_to(place))) for place in (start, end))
            mask[first:last] = [1] * (last - first)
        return ids, mask

    def encode_many(self, renderings: Sequence[tuple[Rendered, list[Span]]]) -> Iterator[Encoded]:
        """Do what `encode_spans` does, for all renderings without a marked token at once, which is much faster."""
        added = set(self.tokenizer.added_tokens_decoder)
        fast = [START not in rendered.marked and self.tokenizer.is_fast for rendered, _ in renderings]
        texts = [rendered.text for rendered, _ in itertools.compress(renderings, fast)]
        batch = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False) if texts else None
        rows = itertools.count()
        for (rendered, spans), is_fast in zip(renderings, fast, strict=True):
            if batch is None or not is_fast:
                yield self.encode_spans(rendered, spans)
                continue
            row = next(rows)
            ids = batch["input_ids"][row]
            mask = [0] * len(ids)
            for start, end in spans:
                for place in range(start, end):
                    first = batch.char_to_token(row, place)
                    # White space at the beginning may belong to no token, or to the control token before it.
                    if first is not None and (ids[first] not in added or batch.token_to_chars(row, first)[0] >= start):
                        break
                last = batch.char_to_token(row, end - 1)
                mask[first : last + 1] = [1] * (last + 1 - first)
            yield ids, mask


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Sequence[dict[str, Any]]]
) -> Iterator[list[Encoded]]:
    """Encode conversations and mark what the assistant says.

    Of most templates a conversation is one sequence. Where the template changes an answer once another turn follows,
    as Qwen3's does, that answer has a sequence of its own, in which it is the last one.

    A conversation that the template refuses has none.

    Raises:
        ValueError: The template refuses all of them, changes the prompt when its answer is added, or ends an answer
            without a token of its own.
    """
    encoder, conversations, taken = ChatEncoder(tokenizer), iter(conversations), False
    while chats := list(itertools.islice(conversations, BATCH)):
        batch: list[list[tuple[Rendered, list[Span]]]] = []
        for chat in chats:
            try:
                batch.append(encoder.answers(chat))
            except TemplateError as error:
                batch.append([])
                refusal = error
        taken = taken or any(batch)
        if not taken:
            raise ValueError(f"the model's chat template refuses a conversation of this data: {refusal}") from None
        encoded = encoder.encode_many([rendering for renderings in batch for rendering in renderings])
        for renderings in batch:
            yield list(itertools.islice(encoded, len(renderings)))


def answer_end_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the token that the chat template writes behind an answer; None where there is none."""
    return ChatEncoder(tokenizer).end_token


def unmarked(text: str) -> str:
    """Return a text without marks."""
    return text.replace(START, "").replace(END, "")


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many elements two sequences begin with that are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return what matches any of the tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
