"""The language model before attention: an embedding, a recurrent network, an LM head."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class RecurrentLM(nn.Module):
    """Embedding, recurrent network, LM head tied to the embedding.

    The network reads one token after the other. Whatever it keeps of the text so far must fit into its state, one
    vector of `width` numbers in each layer.
    """

    def __init__(self, kind: str, vocab_size: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        network = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.network = network(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head.weight = self.embedding.weight
        self.config = SimpleNamespace(vocab_size=vocab_size)  # for `bits_per_byte`

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """Return logits (B, T, V) of the tokens that follow each position of (B, T)."""
        states_BTC, _ = self.network(self.embedding(input_ids))
        return SimpleNamespace(logits=self.head(states_BTC))


def count(model: nn.Module) -> int:
    """Return the number of weights, shared ones once."""
    return sum(weight.numel() for weight in model.parameters())
