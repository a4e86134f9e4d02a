"""The chunked loss is the ordinary one: same value, same gradients, whatever the chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.engine import loss as module
from training.engine.batches import IGNORE
from training.engine.loss import ChunkedCrossEntropy, PretrainingLoss, _loss_and_grad


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(2, 60), st.integers(1, 600), st.integers(0, 2**31))
def test_value_and_gradients_equal_full_cross_entropy(n: int, c: int, v: int, elements: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, c, generator=generator, requires_grad=True)
    weight = torch.randn(v, c, generator=generator, requires_grad=True)
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < 0.3] = IGNORE
    num_items = max(1, int((labels != IGNORE).sum()))
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORE, reduction="sum") / num_items
    expected_grads = torch.autograd.grad(3 * expected, (hidden, weight))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", elements)
        ours = ChunkedCrossEntropy.apply(hidden, weight, labels, num_items, _loss_and_grad)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    for one, two in zip(torch.autograd.grad(3 * ours, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gets_the_gradients_of_its_own_loss(tied: bool) -> None:
    torch.manual_seed(0)
    model = ScratchForCausalLM(
        ScratchConfig(
            vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=tied
        )
    )
    ids = torch.randint(0, 97, (3, 20))
    labels = torch.roll(ids, -1, 1)
    labels[:, -1] = IGNORE
    expected = model(input_ids=ids, labels=ids).loss
    expected.backward()
    wanted = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
    model.zero_grad()
    loss = PretrainingLoss(model)(labels=labels, num_items=3 * 19, input_ids=ids)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert set(wanted) == {name for name, param in model.named_parameters() if param.grad is not None}
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, wanted[name], rtol=1e-5, atol=1e-6)


def test_under_autocast_the_head_runs_in_the_low_type_and_the_loss_stays_near() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    labels = torch.randint(0, 50, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ChunkedCrossEntropy.apply(hidden, weight, labels, 64, _loss_and_grad)
    loss.backward()
    expected = F.cross_entropy(hidden @ weight.T, labels)
    assert loss.dtype == torch.float32 and weight.grad is not None and weight.grad.dtype == torch.float32
    assert 0 < abs(loss.item() - expected.item()) < 0.05
