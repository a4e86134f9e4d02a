"""Next-token cross-entropy whose logits never exist whole: they are made, used and dropped a chunk at a time.

With a vocabulary of 32,768 the logits, their softmax and their gradient are most of what a training step holds. Here
the gradients of hidden states and LM head are computed together with the loss, so nothing as large is kept. The idea
of taking the gradient in the forward pass is that of Liger Kernel (arXiv:2410.10989).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_scratch import ScratchForCausalLM
from training.engine.batches import IGNORE

NumItems = int | torch.Tensor  # a tensor () is not compiled anew for each number
LossAndGrad = Callable[[torch.Tensor, torch.Tensor, NumItems], tuple[torch.Tensor, torch.Tensor]]
CHUNK_ELEMENTS = 2**22  # logits of a chunk on a CPU: 16 MiB in float32, which stays near the processor's cache
GPU_CHUNK_ELEMENTS = 2**28  # on a GPU: 1 GiB in float32, so that few and large products keep it busy
GPU_CHUNK_ROWS = 8192  # and no more rows than these, which a small vocabulary would not need


def chunk_rows(device: str, vocab_size: int) -> int:
    """Return how many positions a chunk of the loss has on a type of device.

    On a GPU a power of two, of which micro-batches are multiples as a rule: then all chunks are alike.
    """
    if device != "cuda":
        return max(1, CHUNK_ELEMENTS // vocab_size)
    rows = min(GPU_CHUNK_ROWS, max(1, GPU_CHUNK_ELEMENTS // vocab_size))
    return 1 << (rows.bit_length() - 1)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over counted tokens of -ln softmax(hidden @ weight.T)[label], divided by a given number of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        labels_N: torch.Tensor,
        num_items: NumItems,
        loss_and_grad: LossAndGrad,
        rows: int | None = None,
    ) -> torch.Tensor:
        """Return the loss (), float32, and keep the gradients of `hidden_NC` and `weight_VC`.

        Args:
            hidden_NC: Last hidden states.
            weight_VC: Of the LM head.
            labels_N: Next token of each position; -100 carries no loss.
            num_items: Counted tokens of the whole step, by which the sum is divided.
            loss_and_grad: `_loss_and_grad`, compiled or not.
            rows: Positions of a chunk; None takes what suits the device.
        """
        dtype = _matmul_dtype(hidden_NC)
        weight = weight_VC.to(dtype)
        grad_hidden = torch.empty_like(hidden_NC)
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        rows = rows or chunk_rows(hidden_NC.device.type, weight_VC.shape[0])
        with torch.autocast(hidden_NC.device.type, enabled=False):
            for start in range(0, len(labels_N), rows):
                part = slice(start, start + rows)
                hidden = hidden_NC[part].to(dtype)
                chunk_loss, grad_logits = loss_and_grad(hidden @ weight.T, labels_N[part], num_items)
                loss += chunk_loss
                grad_logits = grad_logits.to(dtype)
                grad_hidden[part] = grad_logits @ weight
                _add_product(grad_weight, grad_logits.T, hidden)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VC.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None]:
        """Scale the kept gradients."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None, None, None


def _matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add a matrix product to a float32 matrix, whose sums stay float32 where the device can."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif total.device.type == "cuda" and torch.version.hip is None:
        total += torch.mm(left, right, out_dtype=torch.float32)
    else:
        total += left @ right


def _loss_and_grad(
    logits: torch.Tensor, labels: torch.Tensor, num_items: NumItems
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of logits (N, V) and its gradient (N, V), softmax minus one-hot; both float32.

    The gradient takes the place of the logits where they are float32 already.
    """
    logits = logits.float()
    counted = labels != IGNORE
    targets = torch.where(counted, labels, 0)[:, None]
    largest, of_target = logits.amax(dim=-1, keepdim=True), logits.gather(1, targets)
    # Every pass over the logits counts: they are many times what a processor's cache holds.
    exponentials = logits.sub_(largest).exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    share = (counted / num_items)[:, None]
    loss = ((total.log() + largest - of_target) * share).sum()
    return loss, exponentials.mul_(share / total).scatter_add_(1, targets, -share)


class PretrainingLoss(nn.Module):
    """The model and its loss as one module, so that a wrapper for several processes sees a single forward pass."""

    def __init__(self, model: ScratchForCausalLM, compiled: bool = False, rows: int | None = None) -> None:
        """Put the loss around a model; `rows` are the positions of a chunk, None takes what suits the device."""
        super().__init__()
        self.model, self.rows = model, rows
        self.loss_and_grad: LossAndGrad = torch.compile(_loss_and_grad, dynamic=False) if compiled else _loss_and_grad

    def forward(self, labels: torch.Tensor, num_items: NumItems, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the summed loss in nats over `num_items`.

        Args:
            labels: Next token of each position (B, T); -100 carries no loss.
            num_items: Counted tokens of the whole step, by which the sum is divided.
            inputs: `input_ids` (B, T), and `position_ids` (B, T) where documents are packed.
        """
        # use_cache=False: with a cache, packed documents would not be told apart.
        hidden_BTC = self.model.model(**inputs, use_cache=False).last_hidden_state
        given = (hidden_BTC.flatten(0, 1), self.model.lm_head.weight, labels.flatten(), num_items)
        return ChunkedCrossEntropy.apply(*given, self.loss_and_grad, self.rows)
