"""The optimizers against their definitions: who is decayed, what Muon does to a matrix, how the rate moves."""

import math

import pytest
import torch

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training.engine.optimizer import Muon, build_optimizers, learning_rate, orthogonalize


def tiny_model() -> ScratchForCausalLM:
    torch.manual_seed(0)
    return ScratchForCausalLM(
        ScratchConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_optimized_once_and_only_matrices_decay(name: str) -> None:
    model = tiny_model()
    optimizers = build_optimizers(model, name, 1e-3, 0.1, (0.9, 0.95))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    ids = [id(param) for group in groups for param in group["params"]]
    assert sorted(ids) == sorted(id(param) for param in model.parameters())
    for group in groups:
        assert {param.ndim for param in group["params"]} == ({1} if group["weight_decay"] == 0 else {2})
    if name == "muon":
        in_layers = {id(p) for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
        assert {id(p) for p in optimizers[1].param_groups[0]["params"]} == in_layers


def test_one_adamw_step_is_the_papers() -> None:
    """With zero gradient only decay acts: w * (1 - lr * wd) for matrices, nothing for norms (arXiv:1711.05101)."""
    model = tiny_model()
    (optimizer,) = build_optimizers(model, "adamw", 0.5, 0.1, (0.9, 0.95))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), before[name] * (0.95 if param.ndim == 2 else 1.0))


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
def test_orthogonalize_keeps_singular_vectors_and_flattens_values(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape)
    out = orthogonalize(matrices, dtype).float()
    for matrix, result in zip(matrices, out, strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        core = u.T @ result @ vh.T
        assert core.diagonal().min() > 0.5 and core.diagonal().max() < 1.3
        assert (core - torch.diag(core.diagonal())).abs().max() < tolerance


def test_muon_takes_the_steps_of_torchs_muon() -> None:
    """torch's Newton-Schulz runs in bfloat16, so the two agree to its precision."""
    torch.manual_seed(2)
    start, gradients = torch.randn(24, 48), torch.randn(5, 24, 48)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for gradient in gradients:
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_muon_iterates_in_the_precision_of_training() -> None:
    """torch's Muon always iterates in bfloat16: in that precision ours takes its steps, and in float32 others."""
    torch.manual_seed(2)
    start, gradient = torch.randn(24, 48), torch.randn(24, 48)
    stepped = {}
    for name, (kind, options) in {
        "torch": (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
        "bf16": (Muon, {"dtype": torch.bfloat16}),
        "fp32": (Muon, {}),
    }.items():
        param = torch.nn.Parameter(start.clone())
        param.grad = gradient.clone()
        kind([param], lr=0.02, weight_decay=0.1, **options).step()
        stepped[name] = param.detach()
    assert (stepped["bf16"] - stepped["torch"]).norm() < (stepped["fp32"] - stepped["torch"]).norm() / 3


def test_muon_moves_with_adamws_root_mean_square() -> None:
    torch.manual_seed(3)
    param = torch.nn.Parameter(torch.zeros(64, 160))
    param.grad = torch.randn_like(param)
    Muon([param], lr=1.0, weight_decay=0.0).step()
    assert 0.15 < param.detach().pow(2).mean().sqrt() < 0.25


def test_learning_rates_start_low_peak_and_end_at_zero() -> None:
    def rates(schedule: str) -> list[float]:
        return [learning_rate(step, 100, 1.0, 10, schedule, 0.2) for step in range(101)]

    cosine, wsd = rates("cosine"), rates("wsd")
    assert cosine[0] == wsd[0] == 0.1 and cosine[9] == wsd[9] == 1.0
    assert cosine[55] == pytest.approx(0.5) and cosine[100] == pytest.approx(0)
    assert set(wsd[10:80]) == {1.0} and wsd[90] == pytest.approx(0.5) and wsd[100] == 0
    assert all(math.isfinite(rate) and rate >= 0 for rate in cosine + wsd)
    assert learning_rate(0, 10, 1.0, 0, "cosine", 0.2) == 1.0
