"""Checks of chapter 11."""

import struct
from types import ModuleType


def check_1(code: ModuleType) -> None:
    """Blocks are read back, with scale and sign."""
    first = struct.pack("<e32b", 0.5, *range(-16, 16))
    second = struct.pack("<e32b", 2.0, *([127] * 16 + [-128] * 16))
    found = [float(weight) for weight in code.read_q8_0(first + second)]
    assert len(found) == 64, f"two blocks are 64 weights, got {len(found)}"
    assert found[:32] == [0.5 * number for number in range(-16, 16)], "the first block has the scale 0.5"
    assert found[32] == 254.0 and found[63] == -256.0, "the second block has its own scale, 2, and signed numbers"
    assert list(code.read_q8_0(b"")) == []


def check_2(code: ModuleType) -> None:
    """The cache takes what the weights leave."""
    card, weights = 24e9, 2 * 1e9
    alone = code.largest_context(card, weights, 20, 8, 128, 1)
    assert alone == 239257, f"19.6e9 bytes are left and a token takes 81,920: 239,257 tokens, got {alone}"
    shared = code.largest_context(card, weights, 20, 8, 128, 64)
    assert shared == 3738, f"64 conversations share them: 3,738 tokens each, got {shared}"
    assert code.largest_context(16e9, 14.4e9, 32, 8, 128, 1) == 0, "the weights fill what may be used"
    assert code.largest_context(16e9, 15e9, 32, 8, 128, 1) == 0, "not below 0"
