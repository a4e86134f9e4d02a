"""What this machine can do natively: a type that is emulated costs more than it saves, so it is not used."""

import torch


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
