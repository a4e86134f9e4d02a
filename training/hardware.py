"""What this machine can do natively: a type that is emulated costs more than it saves, so it is not used."""

import os

import torch
from accelerate import PartialState


def has_native_bf16() -> bool:
    """Whether the device that training will use multiplies bfloat16 in hardware.

    `torch.cuda.is_bf16_supported()` also says yes where it is emulated (before Ampere); a CPU without AVX512-BF16 or
    AMX takes more than 20 times as long as in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mixed_precision() -> str:
    """Return accelerate's name of the precision to train in: `bf16` where it is native, else `no` (float32)."""
    return "bf16" if has_native_bf16() else "no"


def on_cpu() -> bool:
    """Whether training runs on CPUs: always without an accelerator, and on a Mac where there are several processes.

    Without being told so, accelerate takes processes without a GPU for processes without each other.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is None or (device.type == "mps" and "LOCAL_RANK" in os.environ)


def join_processes() -> PartialState:
    """Settle, before a trainer asks, which device this process has and which others there are.

    A process that no launcher started takes the first GPU: on several, Trainer would turn to `nn.DataParallel`, which
    TRL refuses.
    """
    if "LOCAL_RANK" not in os.environ and torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return PartialState(cpu=on_cpu())
