"""Initial weights under which attention copies: what they are for every shape of heads, and that a seed makes them."""

from collections.abc import Callable

import pytest
import torch

from hf_scratch import ScratchForCausalLM
from training.engine.initial_weights import let_attention_copy

SHAPES = {
    "a head for each": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24},
    "narrow": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "wide": {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16},
    "untied": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 48, "tie_word_embeddings": False},
}


def copied(model: ScratchForCausalLM, layer: int) -> torch.Tensor:
    """What a position that is seen by all heads adds to the stream, as a matrix (C, C)."""
    attention = model.model.layers[layer].self_attn
    values = attention.v_proj.weight.view(-1, attention.head_dim, model.config.hidden_size)
    heads = values.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)
    return attention.o_proj.weight @ heads


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_output_together_are_a_part_of_the_identity(
    make_model: Callable[..., ScratchForCausalLM], shape: dict[str, int]
) -> None:
    model = make_model(**shape)
    let_attention_copy(model, 0.3)
    width = model.config.num_key_value_heads * model.config.head_dim
    for layer in range(model.config.num_hidden_layers):
        together = copied(model, layer).detach() / 0.3
        assert torch.allclose(together, together.T, atol=1e-5)
        kept = torch.linalg.eigvalsh(together).round(decimals=4)
        assert kept.unique().tolist() == ([1.0] if width >= model.config.hidden_size else [0.0, 1.0])
        assert kept.sum() == min(width, model.config.hidden_size)


def test_attention_begins_as_the_average_of_what_it_sees(make_model: Callable[..., ScratchForCausalLM]) -> None:
    model = make_model(**SHAPES["grouped"])
    attention = model.model.layers[0].self_attn
    let_attention_copy(model, 0.5)
    torch.nn.init.zeros_(attention.q_proj.weight)  # every key is alike to such queries
    seen = torch.randn(1, 7, model.config.hidden_size)
    nothing_turned = (torch.ones(1, 7, model.config.head_dim), torch.zeros(1, 7, model.config.head_dim))
    added = attention(seen, nothing_turned, None)[0]
    average = seen.cumsum(1) / torch.arange(1, 8).view(1, 7, 1)
    assert torch.allclose(added, 0.5 * average, atol=1e-5)


def test_strength_0_changes_nothing_and_a_seed_makes_the_weights(
    make_model: Callable[..., ScratchForCausalLM],
) -> None:
    before, model = make_model(), make_model()
    let_attention_copy(model, 0)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        let_attention_copy(model, 0.02)
        made.append(model.model.layers[1].self_attn.v_proj.weight.clone())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
