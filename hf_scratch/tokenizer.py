"""Byte-level BPE on one's own text, and the only two ways by which text becomes token ids: plain and chat.

Control tokens come from the chat template and the training code alone: whatever a document, a user or a model writes
is encoded as ordinary text, `<|im_end|>` included; `chat_tokens` says what an answer's own tokens are. Any Unicode
string decodes to itself.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .chat_tokens import ChatEncoder, encode_chats
from .clean_process import control_tokens, tokens_without_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # it takes seconds, and a tokenizer needs none

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, IM_START, IM_END)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

# Qwen2's pattern. llama.cpp knows it by the name `qwen2`; a pattern that it does not know cannot be exported to it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Message = dict[str, Any]  # role and content, and what else a template takes


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, show_progress: bool = True) -> PreTrainedTokenizerFast:
    """Learn `vocab_size - 260` merges on texts and return the tokenizer with special tokens and chat template.

    No normaliser: text comes back as it was written. Ids 0 to 3 are the special tokens.

    Raises:
        ValueError: The vocabulary is smaller than all bytes and special tokens, or larger than the text can fill.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size} cannot hold the 256 bytes and {len(SPECIAL_TOKENS)} special tokens; "
            f"use at least {MIN_VOCAB_SIZE}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is more than this text can fill: it has pairs for {found} tokens only; "
            f"use vocab_size={found} or less, or give more text."
        )
    return wrap_tokenizer(tokenizer)


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give a trained backend its special tokens and the chat template, as `from_pretrained` will find them.

    The document separator is also the first token of a text (bos), because that is what pretraining showed the model
    before every document. Padding is on the left, as generation needs it; trainers pad for themselves.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        extra_special_tokens=[IM_START, IM_END],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def separator_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what a text begins with and what stands between documents: the bos token, or eos if there is none.

    Raises:
        ValueError: The tokenizer has neither.
    """
    separator = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if separator is None:
        raise ValueError("the tokenizer has neither a bos nor an eos token to begin a text with; set one of them.")
    return separator


def require_fit(tokenizer: PreTrainedTokenizerBase, model: "PreTrainedModel") -> None:
    """Raise ValueError if the tokenizer can give an id that the model has no embedding for."""
    if extra := tokens_without_row(tokenizer, model):
        raise ValueError(
            f"the tokenizer has {len(extra):,} tokens that the model has no row for, {extra[0]!r} for one; take the "
            f"model's own tokenizer, or save the model after `model.resize_token_embeddings({len(tokenizer)})` and "
            "train it on them."
        )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts as plain text: a control token's spelling inside them becomes ordinary tokens.

    Raises:
        ValueError: A text holds half of a surrogate pair, as a broken `\\ud83d` in JSON gives; UTF-8 cannot write it.
    """
    if not texts:
        return []
    _refuse_surrogates(texts)
    if tokenizer.is_fast:
        backend = _text_backend(tokenizer, tuple(tokenizer.added_tokens_encoder))
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)[
        "input_ids"
    ]


def text_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return a copy of a fast tokenizer's backend to which every control token is special, and so may be kept text.

    It never cuts or pads, whatever the tokenizer's file says; `encode_special_tokens`, which is set, is not saved.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    control = set(control_tokens(tokenizer))
    for token in content["added_tokens"]:
        token["special"] = token["content"] in control
    backend = Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))
    backend.encode_special_tokens = True
    return backend


@lru_cache(maxsize=2)
def _text_backend(tokenizer: PreTrainedTokenizerBase, added: tuple[str, ...]) -> Tokenizer:
    """Keep the copies of the tokenizers in use; another token that is added makes another copy."""
    return text_backend(tokenizer)


def keep_control_tokens_text(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Let `sanitize_control_tokens=True` keep every control token in a message text, saved and loaded too.

    By itself it knows those that are special or that the chat template spells. Returns the others, which it is told.
    """
    told = {*(tokenizer.chat_control_tokens or ()), *control_tokens(tokenizer)} - set(tokenizer.all_special_tokens)
    tokenizer.chat_control_tokens = sorted(told) or None
    return sorted(told)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Encode a conversation up to the place where the assistant's next answer begins."""
    _refuse_surrogates([str(message.get("content")) for message in messages])
    encoder = ChatEncoder(tokenizer)
    try:
        return encoder.encode(encoder.render(messages, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}.") from None


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Encode a conversation and mark what the assistant says.

    An answer is what a turn adds to the prompt before it, up to the token that ends it.

    Returns:
        Token ids, and a mask of the same length: 1 for the tokens of answers and the token that ends each.

    Raises:
        ValueError: The template refuses the conversation; or it renders an answer differently once another turn
            follows, so that one sequence cannot hold all; or it ends an answer without a token of its own.
    """
    if messages and messages[0].get("role") == "assistant":
        raise ValueError("a conversation begins with a system or user message, this one with an answer to nothing.")
    _refuse_surrogates([str(message.get("content")) for message in messages])
    (sequences,) = encode_chats(tokenizer, [messages])
    if len(sequences) > 1:
        raise ValueError("the chat template changes earlier text when a turn is added; encode each answer for itself.")
    return sequences[0]


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number} holds {text[error.start]!r} at character {error.start}, which is half of a surrogate "
                "pair; replace it, for example with text.encode('utf-8', 'replace').decode()."
            ) from None
