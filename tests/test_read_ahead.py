"""Reading batches ahead, which GPUs ask for, gives the batches that reading them in time gives."""

import numpy as np
import pytest
import torch

from training.engine.batches import PackedDocuments, ReadAhead, Windows
from training.engine.token_shards import Shards

SHARDS = Shards(np.arange(2000) % 50, np.arange(0, 2000, 20), 2000, 50)


@pytest.mark.parametrize("kind", [Windows, PackedDocuments])
def test_reading_ahead_gives_the_same_batches(kind: type[Windows] | type[PackedDocuments]) -> None:
    ahead, rows, expected = ReadAhead(), kind(SHARDS, 32, 0), kind(SHARDS, 32, 0)
    for step in (0, 1, 2, 2, 40, 7):  # a step done again, one in the next epoch, and one that was not announced
        numbers = np.arange(step * 4, step * 4 + 4)
        for pieces in ([numbers], [numbers[:2], numbers[2:]]):
            found = ahead(rows, pieces, [piece + 4 for piece in pieces])
            for batch, piece in zip(found, pieces, strict=True):
                for key, tensor in expected.batch(piece).items():
                    assert torch.equal(batch[key], tensor)
