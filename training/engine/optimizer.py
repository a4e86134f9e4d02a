"""AdamW with decay on matrices only, Muon for the matrices by option, and the learning rate as a function of the step.

The step size of Muon is scaled to AdamW's, so one learning rate and one weight decay serve both.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from training.engine.sharded import in_shares, local

Schedule = Literal["cosine", "wsd"]


def learning_rate(
    step: int, max_steps: int, peak: float, warmup_steps: int, schedule: Schedule, decay: float
) -> float:
    """Return the learning rate of a step, counted from 0.

    Linear warmup; then `cosine` falls to 0 over the whole run (arXiv:1608.03983), and `wsd` stays at its peak and
    falls linearly to 0 in the last `decay` share of the steps (warmup-stable-decay, arXiv:2404.06395).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, max_steps - warmup_steps)))
    return peak * min(1.0, (max_steps - step) / decay_steps(max_steps, decay))


def decay_steps(max_steps: int, decay: float) -> int:
    """Return the number of last steps in which `wsd` falls."""
    return max(1, round(decay * max_steps))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal by Newton-Schulz iterations (Jordan et al. 2024).

    torch.optim.Muon iterates in bfloat16 and one matrix at a time. This one iterates in the precision of training,
    and on all matrices of a shape at once, because small models have many small matrices. The update is
    scaled by 0.2 sqrt(max(rows, columns)), which gives it AdamW's root mean square (arXiv:2502.16982). Several
    processes share the matrices out among them, whether they hold them in parts or each all of them.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    ITERATIONS = 5

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        copies: DeviceMesh | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype  # of the iterations
        self.copies = copies  # processes that hold the same whole matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, Any], list[torch.Tensor]] = {}  # of a shape, and cut in the same way
            for param in group["params"]:
                if param.grad is not None:
                    alike.setdefault((param.shape, getattr(param, "placements", None)), []).append(param)
            for (shape, _), params in alike.items():
                self._step_matrices(params, group, scale=0.2 * max(shape) ** 0.5)

    def _step_matrices(self, params: list[torch.Tensor], group: dict[str, Any], scale: float) -> None:
        gradients = [local(param.grad) for param in params if param.grad is not None]
        momenta = [local(self.state[param].setdefault("momentum", torch.zeros_like(param))) for param in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        # Nesterov: look one step ahead.
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        rounded = torch.stack(ahead).to(self.dtype)  # before it is sent
        iterate = functools.partial(orthogonalize, dtype=self.dtype)
        updates = in_shares(iterate, rounded, params[0], self.copies).to(params[0].dtype)
        weights = [local(param) for param in params]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * scale)


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace the singular values of each matrix of (n, rows, columns) by values near 1, keeping its vectors."""
    a, b, c = Muon.COEFFICIENTS
    x = matrices.to(dtype)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(Muon.ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class AsOne(torch.optim.Optimizer):
    """Several optimizers of different parameters as the one that a Trainer, its schedule and its checkpoints know."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of each; they see the groups, and so the rate, that a schedule has changed."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_optimizers(
    model: nn.Module,
    name: Literal["adamw", "muon"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    dtype: torch.dtype = torch.float32,
    copies: DeviceMesh | None = None,
) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon for the layers' matrices and AdamW for the rest.

    Weight decay falls on matrices, embedding included, and not on norms and biases. `dtype` is that of Muon's
    iterations; weights and states keep their own. `copies` are processes with the same weights, which share these out.
    """
    named = [(key, param) for key, param in model.named_parameters() if param.requires_grad]
    vectors = [param for _, param in named if param.ndim < 2]
    in_layers = [param for key, param in named if param.ndim == 2 and ".layers." in key]
    others = [param for key, param in named if param.ndim >= 2 and not (param.ndim == 2 and ".layers." in key)]
    assert len(vectors) + len(in_layers) + len(others) == len(named)
    # Tensor parallelism splits the layers' matrices and nothing else: one update cannot hold both kinds.
    decayed = [others] if name == "muon" else [others, in_layers]
    groups = [{"params": params, "weight_decay": weight_decay} for params in decayed]
    groups.append({"params": vectors, "weight_decay": 0.0})
    fused = all(param.device.type in ("cuda", "cpu") for _, param in named)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)]
    if name == "muon":
        optimizers.append(Muon(in_layers, lr=lr, weight_decay=weight_decay, dtype=dtype, copies=copies))
    return optimizers
