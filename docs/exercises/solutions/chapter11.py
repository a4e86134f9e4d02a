"""Solutions to chapter 11: small."""

import struct


def read_q8_0(data: bytes) -> list[float]:
    """Solve 11.1: a scale, and 32 numbers times it."""
    weights = []
    for scale, *numbers in struct.iter_unpack("<e32b", data):
        weights += [scale * number for number in numbers]
    return weights


def largest_context(memory: float, weights: float, layers: int, kv_heads: int, head_dim: int, users: int) -> int:
    """Solve 11.2: what is left, divided by what a token of all conversations takes."""
    a_token = 2 * layers * kv_heads * head_dim * 2  # a key and a value, two bytes a number
    return max(0, int((0.9 * memory - weights) // (a_token * users)))
