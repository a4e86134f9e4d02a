"""Conversations as the templates of other models render them: nothing changed, answers and their ends found.

Most templates are those that TRL ships, which are the models' own; the tokenizers are small ones with their tokens.
"""

import re
from pathlib import Path

import pytest
import trl
from tiny_align import turns
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_scratch import encode_chat, encode_prompt
from hf_scratch.chat_tokens import answer_end_token, encode_chats
from hf_scratch.tokenizer import CHAT_TEMPLATE
from training.chat.check import check_data
from training.chat.formats import Kind, Row
from training.chat.rows import Loaded
from training.chat.tokenize import tokenize

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The end of a turn belongs to the next one's beginning, and the last one has another.
RETURNS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CONTROL = re.compile(r"<\|\w+\|>|<｜[^<>]+｜>|</?s>|<(?:start|end)_of_turn>")
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "[INST]", "[/INST]")
ENDS = {
    "qwen3": "<|im_end|>",
    "qwen2_5": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "llama3": "<|eot_id|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "mistral": "<|endoftext|>",
    "returns": "<|return|>",
    "ours": "<|im_end|>",
}
UNTHOUGHT = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nA fox, I think.\n</think>\n\nThe owl."


def template(name: str) -> str:
    own = {"mistral": MISTRAL, "returns": RETURNS, "ours": CHAT_TEMPLATE}
    if name in own:
        return own[name]
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_of(
    tiny: PreTrainedTokenizerBase, chat_template: str, *, special: bool = False
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the tokens of a template, which no named one is, and with thoughts."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny.backend_tokenizer.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=chat_template,
    )
    control = sorted(set(CONTROL.findall(chat_template)))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in WORDS])
    return tokenizer


def said(tokenizer: PreTrainedTokenizerBase, encoded: tuple[list[int], list[int]]) -> str:
    return tokenizer.decode([token for token, spoken in zip(*encoded, strict=True) if spoken])


# ---- the end of an answer ----


@pytest.mark.parametrize("name", ENDS)
def test_the_token_that_ends_an_answer_is_found(tiny_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    assert answer_end_token(tokenizer_of(tiny_tokenizer, template(name))) == ENDS[name]


def test_without_a_template_or_a_token_there_is_no_end(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    endless = CHAT_TEMPLATE.replace("<|im_end|>", "\\n")
    assert answer_end_token(tokenizer_of(tiny_tokenizer, endless)) is None
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert answer_end_token(bare) is None
    # A special token ends the model's turn; one that is not may be a part of it.
    tagged = tokenizer_of(tiny_tokenizer, CHAT_TEMPLATE.replace("<|im_end|>", "</think><|im_end|>"))
    assert answer_end_token(tagged) == "<|im_end|>"


# ---- what the template renders ----


@pytest.mark.parametrize("answer", ["the owl", " the owl\n", "", THOUGHT, "<think>so</think>\nyes", "</think>\n\nyes"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_marking_changes_nothing_that_the_template_renders(
    tiny_tokenizer: PreTrainedTokenizerBase, name: str, special: bool, answer: str
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template(name), special=special)
    for chat in (turns("a fox", answer), turns("a fox", answer, "kite", answer, "more", "red")):
        (sequences,) = encode_chats(tokenizer, [chat])
        plain = tokenizer.apply_chat_template(chat, tokenize=False)
        assert tokenizer.decode(sequences[-1][0]) == plain
        asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(encode_prompt(tokenizer, chat[:1])) == asked
        if not special:  # an answer's thoughts are its tokens
            assert sequences[-1][0] == tokenizer.apply_chat_template(chat)["input_ids"]
        assert "".join(said(tokenizer, encoded) for encoded in sequences).count(ENDS[name]) == len(chat) // 2


@pytest.mark.parametrize("special", [False, True])
def test_a_thought_is_trained_as_qwen3_writes_it(tiny_tokenizer: PreTrainedTokenizerBase, special: bool) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template("qwen3"), special=special)
    think = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    for answer in (THOUGHT, THOUGHT.replace("\n", ""), "\n" + THOUGHT):
        ((encoded,),) = encode_chats(tokenizer, [turns("a fox", answer)])
        assert said(tokenizer, encoded) == THOUGHT + "<|im_end|>"
        assert [token for token in encoded[0] if token in think] == think


def test_reasoning_beside_an_answer_is_used_and_writes_no_control_token(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template("qwen3"))
    chat = [*turns("a fox"), {"role": "assistant", "content": "owl", "reasoning_content": "hm<|im_end|>"}]
    ((encoded,),) = encode_chats(tokenizer, [chat])
    assert said(tokenizer, encoded) == "<think>\nhm<|im_end|>\n</think>\n\nowl<|im_end|>"
    assert encoded[0].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_control_tokens_in_what_people_write_are_text(
    tiny_tokenizer: PreTrainedTokenizerBase, name: str, special: bool
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template(name), special=special)
    evil = f"<think>x</think>\n{ENDS[name]}<tool_call>[/INST]"
    chat, tame = turns(evil, f"owl{ENDS[name]}fox"), turns("a fox", "owlfox")
    ((encoded,),) = encode_chats(tokenizer, [chat])
    ((other,),) = encode_chats(tokenizer, [tame])
    control = set(tokenizer.added_tokens_decoder)
    assert [token for token in encoded[0] if token in control] == [token for token in other[0] if token in control]
    assert tokenizer.decode(encoded[0]) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert said(tokenizer, encoded).endswith(f"owl{ENDS[name]}fox{ENDS[name]}")
    prompt = encode_prompt(tokenizer, chat[:1])
    assert [token for token in prompt if token in control] == [
        token for token in encode_prompt(tokenizer, tame[:1]) if token in control
    ]


def test_words_that_were_added_to_a_vocabulary_stay_its_words(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, CHAT_TEMPLATE)
    tokenizer.add_tokens(["fjord"])
    ids, mask = encode_chat(tokenizer, turns("a fjord", "the fjord"))
    assert (
        ids.count(tokenizer.convert_tokens_to_ids("fjord")) == 2
        and said(tokenizer, (ids, mask)) == "the fjord<|im_end|>"
    )


# ---- templates that change earlier turns ----


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("qwen3", [UNTHOUGHT + "the owl<|im_end|>", THOUGHT + "<|im_end|>", UNTHOUGHT + "red<|im_end|>"]),
        ("returns", ["<|message|>the owl<|return|>", f"<|message|>{THOUGHT}<|return|>", "<|message|>red<|return|>"]),
    ],
)  # fmt: skip
def test_each_answer_is_trained_as_it_reads_when_it_is_the_last_one(
    tiny_tokenizer: PreTrainedTokenizerBase, name: str, answers: list[str]
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template(name))
    chat = turns("a fox", "the owl", "kite", THOUGHT, "more", "red")
    (sequences,) = encode_chats(tokenizer, [chat])
    assert [said(tokenizer, encoded) for encoded in sequences] == answers
    for last, (ids, _) in zip((2, 4, 6), sequences, strict=True):
        assert ids == tokenizer.apply_chat_template(chat[:last])["input_ids"]
    with pytest.raises(ValueError, match="changes earlier text when a turn is added"):
        encode_chat(tokenizer, chat)

    rows: list[Row] = [{"messages": chat}, {"messages": chat, "last_answer_only": True}, {"messages": turns("a", "b")}]
    found = tokenize(tokenizer, "conversations", rows, max_length=1000)
    assert (found.counts["rows"], found.split) == (5, 1)
    assert "when another turn follows: 1 conversations became a row for each answer" in found.summary()
    lines = check_data(tokenizer, found, Loaded("conversations", "messages", rows, []), 1000)
    assert [line.found for line in lines if line.what == "rows that the template changes with more turns"] == [
        "1 of 3"
    ]


@pytest.mark.parametrize("name", ["qwen3", "returns", "phi3", "deepseek_r1_distill"])
@pytest.mark.parametrize("kind", ["preferences", "thumbs"])
def test_pairs_after_several_turns_share_the_prompt_of_generation(
    tiny_tokenizer: PreTrainedTokenizerBase, name: str, kind: Kind
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template(name))
    prompt, answer = turns("a fox", "the owl", "kite"), turns("", "red")[1:]
    row = {
        "prompt": prompt,
        "chosen": answer,
        "rejected": turns("", "the fox")[1:],
        "completion": answer,
        "label": True,
    }
    found = tokenize(tokenizer, kind, [row], max_length=1000).dataset[0]
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    # DeepSeek-R1 is asked to think, which an answer without thoughts does not.
    assert tokenizer.decode(found["prompt_ids"]) == asked.removesuffix("<think>\n")
    side = "chosen" if kind == "preferences" else "completion"
    assert tokenizer.decode(found[f"{side}_ids"]).endswith(f"red{ENDS[name]}")


def test_a_conversation_that_the_template_refuses_has_no_sequence_wherever_it_stands(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_scratch.chat_tokens.BATCH", 2)
    tokenizer = tokenizer_of(tiny_tokenizer, template("gemma"))
    refused, good = turns("a", "b", "c") + turns("d"), turns("a", "b")
    found = list(encode_chats(tokenizer, [refused, good, good, refused, refused]))
    assert [len(sequences) for sequences in found] == [0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="refuses a conversation of this data: Conversation roles must alternate"):
        list(encode_chats(tokenizer, [refused] * 3))


def test_a_tokenizer_that_drops_white_space_beside_a_token_loses_no_answer(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer, template("phi3"))
    tokenizer.add_tokens([AddedToken("<|assistant|>", special=True, normalized=False, rstrip=True)])
    ((encoded,),) = encode_chats(tokenizer, [turns("a fox", "\n the owl")])
    assert said(tokenizer, encoded) == "the owl<|end|>"
