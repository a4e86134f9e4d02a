"""Checks of chapter 10."""

import math
from typing import Any

import torch


def check_1(code: Any) -> None:
    """The border is a share of the largest share, and what is kept stays as it was."""
    logits = torch.tensor([0.6, 0.3, 0.08, 0.02]).log() + 5
    found = code.min_p(logits.clone(), 0.1)
    right = torch.tensor([True, True, True, False])
    assert torch.equal(found > -math.inf, right), f"with p = 0.1 three of 0.6, 0.3, 0.08, 0.02 are kept, not {found}"
    assert torch.equal(found[:3], logits[:3]), "the scores that are kept must stay as they were"
    assert (code.min_p(logits.clone(), 1.0) > -math.inf).sum() == 1, "with p = 1 the likeliest token is left"


def check_2(code: Any) -> None:
    """Keys and values, of key/value heads alone."""
    found = code.cache_bytes(200, 4, 4, 32, 4)
    assert found == 819_200, f"for the model of the chapter and 200 tokens it is 819200 bytes, not {found}"
    found = code.cache_bytes(32_768, 32, 8, 128, 2)
    assert found == 2**32, f"for 32,768 tokens of a model of 8 billion weights it is {2**32}, not {found}"
