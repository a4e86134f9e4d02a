"""Generation gives the same tokens whichever cache, batch or strategy computes them, and what stock Qwen3 gives.

The reference is a loop of whole forward passes without a cache; strategies that have none are compared with
`Qwen3ForCausalLM` on the same weights.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen3ForCausalLM, StaticCache, pipeline
from transformers.generation import BaseStreamer

from hf_scratch import ScratchForCausalLM

MakeModel = Callable[..., ScratchForCausalLM]
GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 320, shape, generator=torch.Generator().manual_seed(seed))


def greedy_without_generate(model: ScratchForCausalLM, ids: torch.Tensor, steps: int = 8) -> torch.Tensor:
    for _ in range(steps):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@given(data=st.data(), attention=st.sampled_from(["eager", "sdpa"]), static=st.booleans())
def test_any_split_over_the_cache_gives_the_logits_of_the_full_forward(
    make_model: MakeModel, data: st.DataObject, attention: str, static: bool
) -> None:
    model = make_model(attention)
    chunks = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    ids = random_ids(2, sum(chunks))
    cache = StaticCache(config=model.config, max_cache_len=32) if static else DynamicCache(config=model.config)
    with torch.no_grad():
        pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split(chunks, dim=1)]
        full = model(ids).logits
    assert_close(torch.cat(pieces, dim=1), full, rtol=1e-5, atol=1e-5)  # other shapes, other order of summation


def test_the_cache_is_returned_only_on_request(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(1, 4)
    assert tiny_model(ids, use_cache=False).past_key_values is None
    assert tiny_model(ids, use_cache=False, past_key_values=DynamicCache()).past_key_values is None
    assert tiny_model(ids).past_key_values.get_seq_length() == 4


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "cache",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["dynamic", "none", "static", "prompt_lookup"],
)
def test_greedy_is_the_same_with_every_cache(make_model: MakeModel, attention: str, cache: dict[str, object]) -> None:
    model, ids = make_model(attention), random_ids(1, 5).repeat(1, 2)
    assert torch.equal(model.generate(ids, **GREEDY, **cache), greedy_without_generate(model, ids))


@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static", "disable_compile": True}], ids=["dynamic", "static"]
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_left_padded_batch_continues_as_each_row_alone(
    make_model: MakeModel, attention: str, cache: dict[str, object]
) -> None:
    model = make_model(attention)
    rows = [random_ids(1, length, seed=length) for length in (9, 4, 1)]
    padded = torch.cat([torch.nn.functional.pad(row, (9 - row.shape[1], 0), value=1) for row in rows])
    batch = model.generate(padded, attention_mask=(padded != 1).long(), **GREEDY, **cache)
    for row, continued in zip(rows, batch, strict=True):
        assert torch.equal(continued[9:], greedy_without_generate(model, row)[0, row.shape[1] :])


@pytest.mark.parametrize(
    "strategy",
    [
        {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"do_sample": True, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=["beam", "top_k", "top_p"],
)
def test_strategies_give_what_stock_qwen3_gives(
    tiny_model: ScratchForCausalLM, make_stock_twin: Callable[..., Qwen3ForCausalLM], strategy: dict[str, object]
) -> None:
    ids = random_ids(2, 6)
    results = []
    for model in (tiny_model, make_stock_twin(tiny_model)):
        torch.manual_seed(0)
        results.append(model.generate(ids, max_new_tokens=8, **strategy))
    assert torch.equal(*results)


def test_sampling_follows_the_seed_and_stays_in_the_top_k(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(4, 6)

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return tiny_model.generate(ids, do_sample=True, top_k=5, temperature=3.0, max_new_tokens=8, eos_token_id=None)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    sampled = sample(1)
    with torch.no_grad():
        allowed = tiny_model(sampled).logits.topk(5).indices
    chosen = sampled[:, 6:, None]
    assert (allowed[:, 5:-1] == chosen).any(-1).all()
    assert (allowed[:, 5:-1, 0] != chosen[..., 0]).any(), "sampling, not the likeliest token"


def test_generation_stops_at_the_end_token_and_pads_the_rest(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(2, 6)
    free = tiny_model.generate(ids, **GREEDY)
    end = free[0, 8].item()
    stopped = tiny_model.generate(ids, **(GREEDY | {"eos_token_id": end}))
    for row, expected in zip(stopped, free, strict=True):
        length = 6 + next((i + 1 for i, token in enumerate(expected[6:]) if token == end), 8)
        assert torch.equal(row[:length], expected[:length])
        assert (row[length:] == tiny_model.config.pad_token_id).all()
    assert stopped[0, 9:].eq(1).all()


def test_a_streamer_gets_each_token_as_it_is_made(tiny_model: ScratchForCausalLM) -> None:
    class Collector(BaseStreamer):
        def __init__(self) -> None:
            self.calls: list[list[int]] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.calls.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    streamer, ids = Collector(), random_ids(1, 6)
    output = tiny_model.generate(ids, streamer=streamer, **GREEDY)
    assert streamer.calls[0] == ids[0].tolist() and [len(call) for call in streamer.calls[1:]] == [1] * 8
    assert sum(streamer.calls, []) == output[0].tolist() and streamer.ended


def test_embeddings_can_be_the_prompt(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(2, 6)
    continued = tiny_model.generate(inputs_embeds=tiny_model.get_input_embeddings()(ids), **GREEDY)
    assert torch.equal(continued, tiny_model.generate(ids, **GREEDY)[:, 6:])


def test_the_chat_pipeline_answers(tiny_model: ScratchForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = pipeline("text-generation", model=tiny_model, tokenizer=tiny_tokenizer)
    messages = [{"role": "user", "content": "a red kite"}]
    answer = chat(messages, **GREEDY)[0]["generated_text"][-1]
    prompt = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    expected = greedy_without_generate(tiny_model, prompt)[0, prompt.shape[1] :]
    assert answer == {"role": "assistant", "content": tiny_tokenizer.decode(expected, skip_special_tokens=True)}
