"""The GPUs that are known: how fast they are, and how much memory they have."""

import re

# Dense bfloat16 peaks in FLOP/s from the makers' data sheets, and memory in GB where a plan can be made for the GPU.
# The first name that a device's name has as a word counts.
GPUS: dict[str, tuple[float, tuple[int, ...]]] = {
    "B200": (2250e12, (180,)),
    "MI300X": (1307.4e12, (192,)),
    "GH200": (989.4e12, ()),
    "H200 NVL": (835.5e12, ()),
    "H200": (989.4e12, (141,)),
    "H100 PCIe": (756e12, ()),
    "H100 NVL": (835.5e12, ()),
    "H100": (989.4e12, (80,)),
    "A100": (312e12, (40, 80)),
    "L40S": (362e12, (48,)),
    "L40": (181e12, ()),
    "L4": (121e12, (24,)),
    "A10G": (70e12, (24,)),
    "RTX 4090": (165.2e12, (24,)),
    "RTX 3090": (71e12, (24,)),
}
# A device with one of these words in its name is another chip, or (MIG) a part of one.
OTHER_CHIPS = re.compile(r"\b(Ti|D|SUPER|Laptop|Mobile|Max-Q|MIG)\b")
# Name on the command line: peak in FLOP/s, and memory in bytes.
HARDWARE = {
    f"{name.lower().replace(' ', '')}-{size}gb": (peak, size * 1e9)
    for name, (peak, sizes) in GPUS.items()
    for size in sizes
}


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU in FLOP/s, or None if it is not known."""
    if OTHER_CHIPS.search(device_name):
        return None
    return next((peak for name, (peak, _) in GPUS.items() if re.search(rf"\b{name}\b", device_name)), None)
