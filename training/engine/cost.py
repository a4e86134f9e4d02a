"""What a training step costs: floating-point operations, and memory by part, without running it.

The plan and the training loop use the same figures, so a plan can be compared with the run. For memory the model's
own code runs forward and backward on fake tensors while every tensor that comes and goes is counted, so the figure
follows the code. It is eager execution; `torch.compile` on a GPU fuses operations and needs less.
"""

import bisect
import functools
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_scratch import ScratchConfig, ScratchForCausalLM
from hf_scratch.bits_per_byte import default_batch_tokens
from training.engine.gpus import peak_flops
from training.engine.loss import PretrainingLoss, chunk_rows

# What glibc keeps of freed activations from the second step on, as a share of them: nothing to 0.42 in runs of the
# size of tests/test_plan.py, by the threads and the libraries of the process; this is the middle. Tensors above
# HEAP_LIMIT go back to the system at once.
FRAGMENTS = 0.2
HEAP_LIMIT = 32 * 2**20
FLOAT = 4  # bytes of a float32: weights, gradients and optimizer states are never rounded
# Share of a device's memory that may hold the whole gradient of a sharded model: sent once a step, not once for each
# micro-batch.
WHOLE_GRADIENT = 0.1


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs, by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of the decoder, forward and backward
    loss: int  # what LM head and loss add
    evaluation: int  # what a batch of held-out text needs instead of activations and loss
    update: int  # what the optimizer needs instead, to update the weights
    fragments: int  # what the allocator of a CPU process keeps beyond what is used
    program: int  # interpreter, libraries and what the device takes for itself

    @property
    def total(self) -> int:
        """Return the peak: gradients, update or evaluation, whichever is highest."""
        working = max(self.activations + self.loss, self.evaluation, self.update)
        return self.program + self.weights + self.gradients + self.optimizer + self.fragments + working


def training_memory(
    config: ScratchConfig,
    rows: int,
    context: int,
    optimizer: Literal["adamw", "muon"],
    bf16: bool,
    packed: bool = False,
    shards: int = 1,
    whole_gradient: bool = False,
    program: int = 0,
    on_cpu: bool = False,
    checkpointing: bool = False,
) -> Memory:
    """Return what one process needs with this many rows at once.

    Args:
        rows: Micro-batch, in rows of `context` tokens.
        optimizer: AdamW keeps two states for each weight, Muon one for the layers' matrices.
        bf16: Whether matrix products and Muon's iterations run in bfloat16.
        packed: Whether rows hold several documents, which takes a mask.
        shards: FSDP2 processes over which weights, gradients and optimizer states are divided.
        whole_gradient: Whether each of them keeps the whole gradient meanwhile.
        program: Bytes that are there before the model is.
        on_cpu: Whether memory comes from glibc's heap, which fragments.
        checkpointing: Whether a layer's activations are computed a second time instead of kept.
    """
    device = "cpu" if on_cpu else "cuda"
    activations, loss = step_bytes(config, rows, context, bf16, packed, device, checkpointing)
    evaluation = evaluation_bytes(config, context, device)
    update = update_bytes(config, optimizer, bf16) // shards  # each process has its share of the matrices
    layer, rest = parameters_by_place(config)
    total = layer * config.num_hidden_layers + rest
    states = 2 * total if optimizer == "adamw" else total + rest
    gathered = gathered_bytes(layer, rest, bf16) if shards > 1 else 0
    in_heap = on_cpu and rows * context * config.hidden_size * FLOAT < HEAP_LIMIT
    fragments = round(FRAGMENTS * activations) if in_heap else 0
    weights, gradients, moments = (numbers * FLOAT // shards for numbers in (total, total, states))
    gradients += total * FLOAT if whole_gradient else 0
    return Memory(weights + gathered, gradients, moments, activations, loss, evaluation, update, fragments, program)


def gathered_bytes(layer: int, rest: int, bf16: bool) -> int:
    """Return what a process with shards holds whole in a step, beside its shards.

    It is the part outside the layers with its gradient, and two layers, one of them in advance, as they are
    multiplied, with the gradient of one.
    """
    return (2 * rest + layer) * FLOAT + 2 * layer * (FLOAT // 2 if bf16 else FLOAT)


def keeps_whole_gradient(parameters: int, memory: float) -> bool:
    """Whether a process with so many bytes of memory keeps the whole gradient of a sharded model in a step."""
    return parameters * FLOAT <= WHOLE_GRADIENT * memory


def step_bytes(
    config: ScratchConfig, rows: int, context: int, bf16: bool, packed: bool, device: str, checkpointing: bool
) -> tuple[int, int]:
    """Return the bytes of all layers' activations, and those that LM head and loss add."""
    # Layers are all alike, so two sizes give the slope.
    how = (config.to_json_string(), rows, context, bf16, packed, device, checkpointing)
    peak = functools.partial(peak_of_step, *how)
    one, two, without_loss = peak(1, True), peak(2, True), peak(1, False)
    loss = max(0, one - without_loss)
    return one + (config.num_hidden_layers - 1) * (two - one) - loss, loss


def parameters_by_place(config: ScratchConfig) -> tuple[int, int]:
    """Return the parameters of one layer, and those outside the layers."""
    with torch.device("meta"):
        model = ScratchForCausalLM(config)
    layer = sum(param.numel() for param in model.model.layers[0].parameters())
    return layer, model.num_parameters() - layer * config.num_hidden_layers


@functools.cache
def peak_of_step(
    config_json: str,
    rows: int,
    context: int,
    bf16: bool,
    packed: bool,
    device: str,
    checkpointing: bool,
    num_layers: int,
    with_loss: bool,
) -> int:
    """Return the highest number of bytes in a forward and backward pass beyond weights and gradients.

    Without loss it is the decoder's own, for the sum of its output. The config is text so that results can be kept.
    """
    config = ScratchConfig.from_dict(json.loads(config_json) | {"num_hidden_layers": num_layers})
    with FakeTensorMode(), _Peak() as peak:
        model = ScratchForCausalLM(config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        ids = torch.zeros(rows, context, dtype=torch.long)
        inputs = {"position_ids": torch.zeros_like(ids)} if packed else {}
        before = peak.restart()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if with_loss:
                # Chunks of the loss are alike: the first two show its peak, and all would take minutes to count.
                chunk = chunk_rows(device, config.vocab_size)
                loss = PretrainingLoss(model, rows=chunk)
                labels = ids.flatten()[: 2 * chunk]
                result = loss(labels=labels, num_items=ids.numel(), input_ids=ids, **inputs)
            else:
                result = model.model(input_ids=ids, use_cache=False, **inputs).last_hidden_state.float().sum()
        result.backward()
        return peak.highest - before


def evaluation_bytes(config: ScratchConfig, context: int, device: str) -> int:
    """Return what a batch of evaluation needs: in a layer's MLP, or for the logits and their log-probabilities."""
    in_layer = 3 * config.intermediate_size + 2 * config.hidden_size  # type: ignore[operator]
    tokens = max(default_batch_tokens(config.vocab_size, device), context)
    return tokens * max(in_layer, 2 * config.vocab_size) * FLOAT


def update_bytes(config: ScratchConfig, optimizer: Literal["adamw", "muon"], bf16: bool) -> int:
    """Return what Muon needs for the matrices of one shape: momentum, stack and two iterates, and Gram matrices."""
    if optimizer == "adamw":
        return 0  # fused, in place
    rows, columns = config.intermediate_size, config.hidden_size
    matrices = 2 * config.num_hidden_layers  # gate and up
    iterated = FLOAT // 2 if bf16 else FLOAT
    kept, gram = 2 * rows * columns, min(rows, columns) ** 2  # type: ignore[operator,type-var]
    return matrices * (kept * FLOAT + (kept + 2 * gram) * iterated)


def largest_micro_batch(memory_of: Callable[[int], Memory], most: int, limit: float) -> int:
    """Return the largest power of two, or `most`, whose memory is within the limit in bytes; 0 if not even one row."""
    candidates = [*(2**n for n in range(most.bit_length()) if 2**n < most), most]
    index = bisect.bisect_right(candidates, limit, key=lambda rows: memory_of(rows).total)
    return candidates[index - 1] if index else 0


class _Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def restart(self) -> int:
        """Forget the highest number and return the present one."""
        self.highest = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        size = self.known[storage] = storage.nbytes()
        self.now += size
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def count_parameters(config: ScratchConfig) -> tuple[int, int]:
    """Return all parameters, and those without the embedding (and an LM head of its own), without making weights."""
    return _count_parameters(config.to_json_string())


@functools.cache  # each line of the log asks
def _count_parameters(config_json: str) -> tuple[int, int]:
    with torch.device("meta"):
        model = ScratchForCausalLM(ScratchConfig.from_dict(json.loads(config_json)))
    return model.num_parameters(), model.num_parameters(exclude_embeddings=True)


def flops_per_token(config: ScratchConfig, context: int) -> int:
    """Return the operations of forward and backward pass for one token: 6N + 12 L H D T.

    N counts the weights that multiply: all but the embedding, whose lookup is free, unless it is the LM head as well.
    Of a weight's 6, 2 are forward and 4 backward; the second term is q k^T and its product with v, as if no
    position were masked (arXiv:2204.02311, appendix B). Recomputation does not count.
    """
    total, _ = count_parameters(config)
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context  # type: ignore[operator]
    return 6 * (total - lookup) + attention


def utilisation(tokens_per_s: float, flops_a_token: int, num_gpus: int, peak: float) -> float:
    """Return model FLOPs utilisation, the share (0 to 1) of the GPUs' peak that the model's own operations take."""
    return tokens_per_s * flops_a_token / (num_gpus * peak)


def utilisation_of(
    device: torch.device, num_devices: int, tokens_per_s: float, config: ScratchConfig, context: int
) -> float | None:
    """Return model FLOPs utilisation on such devices, or None where the peak is not known."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else utilisation(tokens_per_s, flops_per_token(config, context), num_devices, peak)
