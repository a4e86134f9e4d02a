"""Fast decoding says what stock `generate` says, token for token, and leaves to it what it cannot do itself."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, TorchAoConfig
from transformers.generation.streamers import BaseStreamer

from hf_scratch import ScratchForCausalLM
from hf_scratch.fast_generate import can_decode, generate, is_plain

PROMPT = torch.tensor([[5, 40, 41, 42, 100, 7]])


def stock(model: Any, **kwargs: Any) -> list[int]:
    return GenerationMixin.generate(model, PROMPT, **kwargs)[0].tolist()


def fast(model: Any, **kwargs: Any) -> list[int]:
    assert can_decode(model) and is_plain(model, (PROMPT,), kwargs)
    return generate(PROMPT, model=model, **kwargs)[0].tolist()


SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.5},
    {"do_sample": False, "eos_token_id": list(range(100, 200))},
    {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "penalty", "end", "sampled"])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_tokens_are_those_of_the_stock_loop(
    make_model: Callable[..., ScratchForCausalLM], key_value_heads: int, settings: dict[str, Any]
) -> None:
    model = make_model(num_key_value_heads=key_value_heads)
    answers = []
    for run in (stock, fast):
        torch.manual_seed(3)
        answers.append(run(model, max_new_tokens=60, **settings))
    assert answers[0] == answers[1] and len(answers[0]) > PROMPT.shape[1]


def test_a_stock_qwen3_is_decoded_too(
    make_model: Callable[..., ScratchForCausalLM], make_stock_twin: Callable[..., Any]
) -> None:
    twin = make_stock_twin(make_model())
    assert fast(twin, max_new_tokens=40, do_sample=False) == stock(twin, max_new_tokens=40, do_sample=False)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen += value.flatten().tolist()

    def end(self) -> None:
        self.seen.append(-1)


def test_streamer_and_stopping_criteria_are_served(tiny_model: ScratchForCausalLM) -> None:
    streamer = Collect()
    config = GenerationConfig(max_new_tokens=50, do_sample=False)
    stop = [lambda ids, scores: torch.tensor([ids.shape[1] >= 12])]
    found = fast(tiny_model, generation_config=config, streamer=streamer, stopping_criteria=stop)
    assert len(found) == 12 and streamer.seen == [*found, -1]


def test_an_answer_can_be_trained_on(tiny_model: ScratchForCausalLM) -> None:
    ids = generate(PROMPT, model=tiny_model, max_new_tokens=5, do_sample=False)
    tiny_model(ids, labels=ids).loss.backward()
    tiny_model.zero_grad()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"position_ids": torch.arange(6).unsqueeze(0)},
        {"generation_config": GenerationConfig(num_beams=3)},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_another_way_of_generating_is_left_to_the_stock_loop(
    tiny_model: ScratchForCausalLM, kwargs: dict[str, Any]
) -> None:
    assert not is_plain(tiny_model, (PROMPT,), kwargs)


def test_a_batch_and_a_padded_text_are_left_to_the_stock_loop(tiny_model: ScratchForCausalLM) -> None:
    assert not is_plain(tiny_model, (PROMPT.repeat(2, 1),), {})
    assert not is_plain(tiny_model, (torch.tensor([[1, 1, 5]]),), {})
    batch = generate(PROMPT.repeat(2, 1), model=tiny_model, max_new_tokens=8, do_sample=False)
    assert batch[0].tolist() == batch[1].tolist() == stock(tiny_model, max_new_tokens=8, do_sample=False)


def test_a_model_it_does_not_compute_is_left_to_the_stock_loop(make_model: Callable[..., ScratchForCausalLM]) -> None:
    assert can_decode(make_model())
    assert not can_decode(make_model().to(torch.float64))
    assert not can_decode(make_model().train())
    hooked = make_model()
    hooked.model.layers[0].register_forward_hook(lambda *given: None)
    assert not can_decode(hooked)
    adapted = make_model()
    adapted.model.layers[0].mlp.up_proj.__class__ = type("QuantizedLinear", (torch.nn.Linear,), {})
    assert not can_decode(adapted)


class Wrapped(torch.Tensor):
    """A weight that is no plain tensor, as quantized and distributed ones are."""


@pytest.mark.parametrize("weight", ["model.layers.1.mlp.up_proj", "model.norm", "lm_head"])
def test_weights_that_are_no_plain_tensors_are_left_to_the_stock_loop(
    make_model: Callable[..., ScratchForCausalLM], weight: str
) -> None:
    model = make_model(tie_word_embeddings=False)
    module = model.get_submodule(weight)
    module.weight = torch.nn.Parameter(module.weight.detach().as_subclass(Wrapped))
    assert not can_decode(model)
    found = generate(PROMPT, model=model, max_new_tokens=8, do_sample=False)
    assert found[0].tolist() == stock(make_model(tie_word_embeddings=False), max_new_tokens=8, do_sample=False)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int4WeightOnlyConfig"])
def test_a_model_in_few_bits_answers(
    make_model: Callable[..., ScratchForCausalLM], tmp_path: Path, kind: str, context: Callable[[], Any]
) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    make_model(hidden_size=64, intermediate_size=64, head_dim=16).save_pretrained(tmp_path)
    config = TorchAoConfig(getattr(quantization, kind)())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    with context():
        expected = stock(model, max_new_tokens=8, do_sample=False)
        assert generate(PROMPT, model=model, max_new_tokens=8, do_sample=False)[0].tolist() == expected


def test_a_model_without_a_pad_token_needs_no_mask(make_model: Callable[..., ScratchForCausalLM]) -> None:
    model = make_model(pad_token_id=None)
    assert fast(model, max_new_tokens=8, do_sample=False) == stock(model, max_new_tokens=8, do_sample=False)
    found = fast(make_model(), max_new_tokens=8, do_sample=False, pad_token_id=None)
    assert found == stock(make_model(), max_new_tokens=8, do_sample=False, pad_token_id=None)


@pytest.mark.parametrize("way", ["wrapped", "loaded", "prompt"])
def test_adapters_are_not_passed_over(make_model: Callable[..., ScratchForCausalLM], way: str) -> None:
    peft = pytest.importorskip("peft")
    model, plain = make_model(), make_model()
    lora = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model.generate = functools.partial(generate, model=model)  # as a release's model has it
    torch.manual_seed(0)
    if way == "loaded":
        model.add_adapter(lora)
        adapted = model
    else:
        prompt = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, prompt if way == "prompt" else lora).eval()
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    found = adapted.generate(input_ids=PROMPT, **how)[0].tolist()
    del model.generate
    assert found == adapted.generate(input_ids=PROMPT, **how)[0].tolist() != stock(plain, **how)
