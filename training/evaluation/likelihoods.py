"""A model as lm-evaluation-harness asks it: log-probabilities of continuations, many sentences in one forward pass.

The harness's own loop encodes a text at a time, takes a fixed number of rows, and writes a whole log-softmax to read
one number a token of it. Here texts are encoded together, a batch has as many tokens as its memory allows, and only
the scored positions have logits. The numbers are the same.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from hf_scratch.bits_per_byte import default_batch_tokens

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, and the tokens of context and continuation


class BatchedLM(HFLM):
    """The harness's model with its own way to compute log-likelihoods; all else is the harness's."""

    encoded: dict[tuple[str, bool | None], list[int]] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the likeliest one token by token."""
        texts: dict[bool | None, set[str]] = {None: set(), False: set()}
        for context, continuation in (request.args for request in requests):
            texts[None if context else False] |= {context + continuation}
            texts[None] |= {context.rstrip()} - {""}
        self.encoded = {}
        for special, wanted in texts.items():
            # With a prefix in its text the harness decides one by one whether to add a second.
            batch = [text for text in wanted if not text.startswith(self.tokenizer.decode(self.prefix_token_id))]
            options = {} if special is None and self.add_bos_token is None else {"add_special_tokens": bool(special)}
            if special is None and self.add_bos_token is not None:
                options = {"add_special_tokens": self.add_bos_token}
            rows = self.tokenizer(batch, **options)["input_ids"] if batch else []
            self.encoded |= {(text, special): row for text, row in zip(batch, rows, strict=True)}
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self.encoded = {}
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text."""
        known = self.encoded.get((string, add_special_tokens))
        return super().tok_encode(string, add_special_tokens, **kwargs) if known is None else known

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        # The last `max_length` inputs, and the token that follows them.
        rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        scored = [min(len(row) - 1, len(request[2])) for row, request in zip(rows, requests, strict=True)]
        batch_tokens = default_batch_tokens(self.model.config.vocab_size, self.device.type)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for batch in _batches([len(row) - 1 for row in rows], batch_tokens):
            sums, greedy = self._score([rows[i] for i in batch], [scored[i] for i in batch])
            for i, total, likeliest in zip(batch, sums, greedy, strict=True):
                results[i] = (total, likeliest)
        return results

    def _score(self, rows: list[list[int]], scored: list[int]) -> tuple[list[float], list[bool]]:
        """Return the log-probability of the last `scored` tokens of each row, and whether each is the likeliest."""
        lengths = [len(row) - 1 for row in rows]
        width = max(lengths)
        keep = max(width - length + count for length, count in zip(lengths, scored, strict=True))
        # Padded on the right, where causal attention never looks from a token: no mask is needed.
        inputs, targets = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -1, np.int64)
        for i, (row, length, count) in enumerate(zip(rows, lengths, scored, strict=True)):
            inputs[i, :length] = row[:-1]
            targets[i, length - count : length] = row[length + 1 - count :]
        few = {"logits_to_keep": keep} if self.model._supports_logits_to_keep() else {}
        output = self.model(torch.from_numpy(inputs).to(self.device), use_cache=False, **few)
        logits_BKV = output.logits[:, -keep:].float()
        targets_BK = torch.from_numpy(targets[:, -keep:]).to(self.device)
        counts_BK = targets_BK >= 0
        own_BK = logits_BKV.gather(-1, targets_BK.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        top_BK, likeliest_BK = logits_BKV.max(-1)
        others_BK = logits_BKV.sub_(top_BK.unsqueeze(-1)).exp_().sum(-1).log()
        # In float64, where the sum of equal numbers does not depend on their places: a tie stays one.
        sums = ((own_BK - top_BK - others_BK) * counts_BK).double().sum(-1)
        greedy = ((likeliest_BK == targets_BK) | ~counts_BK).all(-1)
        return sums.tolist(), greedy.tolist()


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield places of rows of like length, the longest first, of `batch_tokens` at most with their padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
