"""Exercises of chapter 11: small."""


def read_q8_0(data: bytes) -> list[float]:
    """Exercise 11.1: return the weights in blocks of q8_0.

    Args:
        data: Blocks of 34 bytes: a scale as little-endian float16, then 32 signed numbers of 8 bits.
    """
    raise NotImplementedError


def largest_context(memory: float, weights: float, layers: int, kv_heads: int, head_dim: int, users: int) -> int:
    """Exercise 11.2: return how many tokens each of so many conversations can have, 0 if none.

    Args:
        memory: Bytes of the card, of which a tenth stays free.
        weights: Bytes of the weights.
        layers: Layers of the model.
        kv_heads: Heads of keys and values.
        head_dim: Numbers of a key or value; each takes two bytes.
        users: Conversations at once.
    """
    raise NotImplementedError
