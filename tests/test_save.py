"""What a trained model keeps of how it generates: where it stops, and how it draws its tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_align import CHATS, PAIRS, run_stage, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from hf_scratch import ScratchForCausalLM
from training import dpo, sft
from training.alignment.stage import load_model
from training.engine.save import end_of_answer, save_model

END_OF_TURN = "<end_of_turn>"
GEMMA = (
    "{%- for message in messages %}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' ~ role ~ '\\n' ~ (message['content'] | trim) ~ '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"
)


@pytest.fixture
def gemma_like(
    make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """A model whose turns end with a token that is not its tokenizer's eos, and which samples."""
    folder = tmp_path / "gemma"
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", END_OF_TURN]})
    tokenizer.chat_template = GEMMA
    model = make_model(vocab_size=322, eos_token_id=[0, 321])
    model.generation_config = GenerationConfig(
        eos_token_id=[0, 321], bos_token_id=0, pad_token_id=1, do_sample=True, temperature=0.6, top_p=0.95, top_k=64
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tuned_model_still_stops_and_samples_as_its_maker_wrote(gemma_like: Path, tmp_path: Path) -> None:
    run_stage(sft.main, str(gemma_like), write_jsonl(tmp_path / "c.jsonl", CHATS), tmp_path / "run", max_steps=1)
    settings = GenerationConfig.from_pretrained(tmp_path / "run/model")
    assert set(settings.eos_token_id) == {0, 321}
    assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 0.6, 0.95, 64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    with torch.no_grad():  # the token that ends a turn is the likeliest one
        model.lm_head.weight[321] = 100 * model.model(torch.tensor([[5, 6]])).last_hidden_state[0, -1]
    answer = model.generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False)
    assert answer.tolist() == [[5, 6, 321]]


def test_how_answers_are_to_be_sampled_is_saved_and_kept_by_the_next_stage(base: str, tmp_path: Path) -> None:
    chats, pairs = write_jsonl(tmp_path / "c.jsonl", CHATS), write_jsonl(tmp_path / "p.jsonl", PAIRS)
    run_stage(sft.main, base, chats, tmp_path / "sft", max_steps=1, answer_temperature=0.5)
    run_stage(dpo.main, str(tmp_path / "sft/model"), pairs, tmp_path / "dpo", max_steps=1)
    for stage in ("sft", "dpo"):
        how = GenerationConfig.from_pretrained(tmp_path / stage / "model")
        assert (how.do_sample, how.temperature, how.top_k) == (True, 0.5, 50)


def test_the_quickstart_is_measured_as_its_page_samples() -> None:
    recipe = Path(__file__).parent.parent / "training" / "recipes" / "quickstart"
    asked, measured = (yaml.safe_load((recipe / f"{name}.yaml").read_text()) for name in ("sft", "eval"))
    assert asked["answer_temperature"] == measured["temperature"]


def test_an_end_that_only_the_template_knows_is_added(gemma_like: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gemma_like)
    tokenizer = AutoTokenizer.from_pretrained(gemma_like)
    model.generation_config = GenerationConfig(eos_token_id=0, max_new_tokens=77, repetition_penalty=1.1)
    model.config.eos_token_id = 0
    save_model(model, tokenizer, tmp_path / "model")
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    assert settings.eos_token_id == [0, 321] and settings.do_sample is False
    assert (settings.max_new_tokens, settings.repetition_penalty) == (77, 1.1)


@pytest.mark.parametrize(
    ("said", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": False, "temperature": 0.9}, {"do_sample": False, "temperature": None}),
        ({"num_beams": 1, "length_penalty": 2.0}, {"do_sample": False, "length_penalty": None}),
        ({"do_sample": True, "top_k": 20, "min_p": 0.1}, {"do_sample": True, "top_k": 20, "min_p": 0.1}),
        ({}, {"do_sample": False}),
    ],
    ids=["sampling without do_sample", "greedy with a temperature", "contradiction", "sampling", "nothing"],
)
def test_settings_that_transformers_would_not_save_do_not_stop_it(
    make_model: Callable[..., ScratchForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    said: dict[str, Any],
    saved: dict[str, Any],
) -> None:
    model = make_model()
    model.generation_config = GenerationConfig(**said)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    assert {name: getattr(settings, name) for name in saved} == saved
    assert settings.eos_token_id == [0, 3] and settings.pad_token_id == 1


@pytest.mark.parametrize(
    ("behind", "end"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        (" </s>", "</s>"),
        ("<|end|>\n<|endoftext|>", "<|end|>"),  # Phi writes both, and says the first one first
        ("\n### End\n", None),
    ],
)
def test_the_end_of_an_answer_is_the_first_control_token_behind_it(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, behind: str, end: str | None
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["</s>", "<|end|>"], special_tokens=True)  # no named one of the tokenizer
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + ': ' + message.content }}"
        f"{{{{ {behind!r} if message.role == 'assistant' else ' ' }}}}{{% endfor %}}"
    )
    found = end_of_answer(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end


def test_a_template_that_takes_no_such_conversation_has_no_end(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ raise_exception('a system message comes first') }}"
    assert end_of_answer(tokenizer) is None
    tokenizer.chat_template = None
    assert end_of_answer(tokenizer) is None


def test_what_is_aligned_answers_up_to_the_end_of_its_template(gemma_like: Path) -> None:
    model, tokenizer = load_model(str(gemma_like))
    assert tokenizer.eos_token == END_OF_TURN and set(model.generation_config.eos_token_id) == {0, 321}


def test_a_stock_model_learns_the_token_that_pads_and_ends_turns(
    make_model: Callable[..., ScratchForCausalLM],
    make_stock_twin: Callable[..., Any],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    make_stock_twin(make_model(pad_token_id=3)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    tuned, tokenizer = load_model(str(tmp_path))
    moved = []
    for model in (stock, tuned):
        model.model(torch.tensor([[tokenizer.eos_token_id, 5, 6]])).last_hidden_state.sum().backward()
        moved.append(bool(model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().max() > 0))
    assert moved == [False, True]


def test_what_old_config_files_say_of_generation_stops_no_save(
    make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "old")
    (tmp_path / "old/generation_config.json").unlink()
    path = tmp_path / "old/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.5, "do_sample": True}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    save_model(model, tiny_tokenizer, tmp_path / "model")
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (settings.do_sample, settings.temperature) == (True, 0.5)


def test_the_tokenizer_says_how_much_the_model_reads(
    make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    for own, saved in ((int(1e30), 128), (int(1e18), 128), (100, 100), (131072, 131072)):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, model_max_length=own)
        save_model(make_model(), tokenizer, tmp_path / str(own))
        assert AutoTokenizer.from_pretrained(tmp_path / str(own)).model_max_length == saved
