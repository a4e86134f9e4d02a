"""One training loop on many processes: DDP, FSDP2 and tensor parallelism, as the launch file says.

    accelerate launch --config_file training/launch/fsdp2.yaml -m training.pretrain --config ...

accelerate starts the processes and reads the file; what is sharded is sharded by torch's own `fully_shard` and
`parallelize_module`, because accelerate silently trains with DDP where FSDP2 is asked for on CPUs, refuses tensor
parallelism there and shards for one optimizer only. So one path serves gloo and NCCL, and what is tested is what runs.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_scratch import ScratchForCausalLM
from training.engine.cost import keeps_whole_gradient
from training.engine.device import memory_of_device, on_cpu, settle_tf32
from training.engine.sharded import local, part_of, whole

# What `accelerate launch` sets for a launch file with FSDP; Accelerator() must not act on it, see above.
USE_FSDP, USE_SIZES = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"


def make_accelerator(precision: Literal["fp32", "bf16"]) -> Accelerator:
    """Return the accelerator of this process: its device, its rank and the process group, but no sharding."""
    settle_tf32(precision == "bf16")
    AcceleratorState._reset_state()  # it keeps the precision of a run before in this process
    asked = {name: os.environ.pop(name) for name in (USE_FSDP, USE_SIZES) if name in os.environ}
    # The gradients live in DDP's communication buffers instead of beside them.
    in_buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    mixed = "bf16" if precision == "bf16" else "no"
    accelerator = Accelerator(cpu=on_cpu(), mixed_precision=mixed, kwargs_handlers=[in_buckets])
    os.environ.update(asked)
    return accelerator


@dataclass(frozen=True)
class Layout:
    """How processes are arranged: neighbours split matrices, then come shards of a copy, then copies."""

    copies: int = 1  # of the model, that average gradients: DDP, or HSDP if each is sharded
    shards: int = 1  # processes that hold one copy together: FSDP2
    splits: int = 1  # processes that compute each matrix product together: tensor parallelism

    @classmethod
    def from_environment(cls, num_processes: int) -> "Layout":
        """Read what `accelerate launch` wrote from `fsdp_config` and `parallelism_config` of the launch file.

        Raises:
            ValueError: The sizes do not multiply to the number of processes, or something is asked that is not here.
        """
        if not _is_set(USE_FSDP):
            return cls(copies=num_processes)
        if os.environ.get("FSDP_VERSION") != "2":
            version = os.environ.get("FSDP_VERSION")
            raise ValueError(f"fsdp_version is {version} in the launch file; pretraining needs fsdp_version: 2.")
        if _is_set("FSDP_OFFLOAD_PARAMS"):
            raise ValueError("fsdp_offload_params is not supported by pretraining; set it to false, or use more GPUs.")
        if not _is_set(USE_SIZES):
            return cls(shards=num_processes)
        sizes = ParallelismConfig()
        if sizes.cp_size > 1 or sizes.sp_size > 1:
            raise ValueError("context and sequence parallelism are not supported by pretraining; leave them out.")
        layout = cls(sizes.dp_replicate_size, sizes.dp_shard_size, sizes.tp_size)
        if layout.copies * layout.shards * layout.splits != num_processes:
            raise ValueError(
                f"dp_replicate_size={layout.copies} x dp_shard_size={layout.shards} x tp_size={layout.splits} in the "
                f"launch file is not its num_processes={num_processes}; change one of them."
            )
        return layout


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def compile_layers(model: ScratchForCausalLM) -> None:
    """Compile layer by layer: one compilation serves all of them, and FSDP2's hooks stay outside.

    For each shape anew: how a step rounds would else depend on the shapes before it, which a resumed run has not seen.
    """
    for layer in model.model.layers:
        layer.compile(dynamic=False)


class Parallel:
    """What the training loop must ask when it runs on several processes; on one it does nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.layout = layout = Layout.from_environment(accelerator.num_processes)
        self.mesh: DeviceMesh | None = None
        if layout.shards * layout.splits > 1:
            shape = (layout.copies, layout.shards, layout.splits)
            self.mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=("copies", "shards", "splits"))
        # Of DDP: the processes that hold the same whole weights.
        self.copies: DeviceMesh | None = None
        if self.mesh is None and layout.copies > 1:
            self.copies = init_device_mesh(accelerator.device.type, (layout.copies,), mesh_dim_names=("copies",))
        self.whole_gradient = False  # whether a sharded model's gradient is kept whole between micro-batches

    # Processes that split matrices see the same rows; each of the others takes its part of a step.
    @property
    def data_count(self) -> int:
        """Number of parts into which the rows of a step are divided."""
        return self.layout.copies * self.layout.shards

    @property
    def data_index(self) -> int:
        """This process's part."""
        return self.accelerator.process_index // self.layout.splits

    def describe(self) -> str:
        """Return the layout in words, for the log."""
        layout, device = self.layout, self.accelerator.device.type
        sharded = f", each sharded over {layout.shards} (FSDP2)" if layout.shards > 1 else ""
        split = f", matrices split over {layout.splits} (TP)" if layout.splits > 1 else ""
        return f"{self.accelerator.num_processes} x {device}: {layout.copies} data-parallel{sharded}{split}"

    def wrap(self, module: nn.Module, compiled: bool, checkpointing: bool = False) -> nn.Module:
        """Put the model, or a module around it, on the device: sharded in place or within DDP. Before the optimizers.

        Args:
            module: The model, or a module around it.
            compiled: Whether its layers are.
            checkpointing: Whether they compute their activations a second time instead of keeping them.

        Raises:
            ValueError: Tensor parallelism cannot divide the model.
        """
        device = self.accelerator.device
        (model,) = (part for part in module.modules() if isinstance(part, ScratchForCausalLM))
        if checkpointing or (_is_set(USE_FSDP) and _is_set("FSDP_ACTIVATION_CHECKPOINTING")):
            model.gradient_checkpointing_enable()
        if compiled and self.layout.splits == 1:
            compile_layers(model)
        if self.mesh is None:
            return self.accelerator.prepare(module.to(device))
        if self.layout.splits > 1:
            split_layers(model, self.mesh["splits"])
        if self.data_count > 1:
            mesh = self.mesh["shards"] if self.layout.copies == 1 else self.mesh["copies", "shards"]
            parameters = sum(local(param).numel() for param in model.parameters())
            self.whole_gradient = not self.any(not keeps_whole_gradient(parameters, memory_of_device(device)))
            bf16 = self.accelerator.mixed_precision == "bf16"
            shard(module, model, mesh, torch.bfloat16 if bf16 else torch.float32)
        return module.to(device)

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Send no gradients to other processes: those of the step's last micro-batch are sent with these added.

        Where the whole gradient of a sharded model takes too much memory, each process keeps its shard alone, which
        is sent at once; then it is the copies of the model that wait.
        """
        if not isinstance(model, FSDPModule):
            with self.accelerator.no_sync(model):
                yield
            return
        wait = model.set_requires_gradient_sync if self.whole_gradient else model.set_requires_all_reduce
        wait(False)
        try:
            yield
        finally:
            wait(True)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over the parts of a step."""
        if self.accelerator.num_processes == 1:
            return value
        counts_once = self.accelerator.process_index % self.layout.splits == 0
        value = value.to(self.accelerator.device)
        return self.accelerator.reduce(value if counts_once else torch.zeros_like(value), "sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process, so that all of them stop at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def clip_grad_norm(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        """Scale the gradient to at most this length and return the length that it had, the same on all processes."""
        if self.mesh is None:
            return self.accelerator.clip_grad_norm_(model.parameters(), max_norm)
        if self.layout.splits > 1:
            sum_over_heads(model, self.mesh["splits"])
        groups = _by_placement(model.parameters())
        norms = [whole(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        for group in groups:
            nn.utils.clip_grads_with_norm_(group, max_norm, norm)
        return norm

    def gather(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights whole; empty on all but the main process, and all must call this."""
        gathered = {}
        for name, weight in weights.items():
            full = whole(weight)
            if self.accelerator.is_main_process:
                gathered[name] = full.cpu() if isinstance(weight, DTensor) else full
        return gathered

    def load_weights(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        """Load whole weights into a model that may be sharded; the tied LM head is not among them."""
        if self.mesh is None:
            model.load_state_dict(weights, strict=False)
            return
        with torch.no_grad():
            for name, param in model.named_parameters():
                local(param).copy_(part_of(weights[name], param))


def split_layers(model: ScratchForCausalLM, mesh: DeviceMesh) -> None:
    """Apply the config's tensor-parallel plan to the decoder layers; embedding, norms and LM head stay whole.

    Raises:
        ValueError: Heads or the width of SwiGLU cannot be divided.
    """
    config, size = model.config, mesh.size()
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ValueError(
                f"tp_size={size} does not divide {name}={getattr(config, name)}; use a tp_size that does, or sharding "
                "(dp_shard_size) alone."
            )
    styles: dict[str, Any] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan = {f"model.{key}": styles[style]() for key, style in config.base_model_tp_plan.items() if style in styles}
    parallelize_module(model, mesh, plan)


def sum_over_heads(model: nn.Module, mesh: DeviceMesh) -> None:
    """Sum the gradients of q_norm and k_norm, whole weights that each process used on its own heads only.

    Once a step, not in a hook of the parameter: that would sum what accumulation had already summed.
    """
    norms = [param for name, param in model.named_parameters() if name.endswith(("q_norm.weight", "k_norm.weight"))]
    parts = [local(param.grad) for param in norms if param.grad is not None]
    together = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(together, group=mesh.get_group())
    for part, summed in zip(parts, together.split([part.numel() for part in parts]), strict=True):
        part.copy_(summed.view_as(part))


def shard(module: nn.Module, model: ScratchForCausalLM, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard each decoder layer, and the rest as one group, which stays whole from forward to backward.

    Layers are gathered in `dtype`, to which autocast would round their matrices, so that numbers equal DDP's but for
    the rounding of norms. What enters and leaves a layer stays float32, as do the embedding and sums of gradients.
    """
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let what `Parallel.wrap` returned be used by another way than its own forward pass, without gradients."""
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _by_placement(params: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters whose gradients can go into one operation."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for param in params:
        if param.grad is not None:
            key = (param.device_mesh, param.placements) if isinstance(param, DTensor) else None
            groups.setdefault(key, []).append(param)
    return list(groups.values())
