"""How much of a text stands in the training text: its longest run of words, and the share of its runs of eight.

All texts are looked for at once while the training text is read piece by piece, so memory does not grow with it. Runs
are compared by their words and not by hashes of them: what is found is there. Capitals, accents, apostrophes and what
stands between words do not count.
"""

import itertools
import re
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from training.engine.token_shards import Tokens

WORD = re.compile("[^\\W_]+(?:['’‘\u0300-\u036f]+[^\\W_]+)*")  # didn't is one word
GRAM = 8  # words of the runs whose share is counted
PIECE = 2**18  # tokens read at once, about a megabyte of text
OVERLAP = 2**11  # tokens, more than any text looked for has: a run that a cut goes through is whole in one piece
PIECES = 400  # of a larger training text as many, evenly spaced: about 100 million tokens


@dataclass
class Shared:
    """What a text has in common with the training text.

    `words` is its longest run of words that stands there, `passage` this run as it stands there, and `grams` the share
    of its runs of eight words that stand there, None if it has fewer words.
    """

    words: int = 0
    passage: str = ""
    grams: float | None = None


class Passages:
    """Texts that are looked for, with their words W after one another, and what was found of each."""

    def __init__(self, texts: Sequence[str], quoted: int) -> None:
        """Take texts, of which the first `quoted` get their longest run as the training text writes it."""
        self.quoted = quoted
        found = [[plain_word(word) for word in WORD.findall(text)] for text in texts]
        every = list(itertools.chain.from_iterable(found))
        known = {word: i for i, word in enumerate(dict.fromkeys(every))}
        self.stranger = len(known)  # the id of all other words
        self.id_of = lru_cache(maxsize=2**18)(lambda word: known.get(plain_word(word), self.stranger))
        self.words = np.array([known[word] for word in every], dtype=np.int64)
        lengths = [len(words) for words in found]
        self.owners = np.repeat(np.arange(len(texts)), lengths)
        self.left = np.concatenate([np.arange(n, 0, -1) for n in lengths] or [self.words])  # words to the text's end
        # Of each length the run that begins at each place (W,), by its number; -1 where the text ends before.
        self.runs = [np.full(len(every), -1), self.words]
        self.keys = [np.empty(0, np.int64), np.arange(self.stranger)]  # what a run of each number is known by, sorted
        self.grams = np.zeros(len(every), dtype=bool)
        self.shared = [Shared() for _ in texts]

    def add_length(self) -> None:
        """Number the runs that are a word longer, each known by the number of the shorter one and its last word."""
        starts = np.flatnonzero(self.left >= len(self.runs))
        known_by = self.runs[-1][starts] * (self.stranger + 1) + self.words[starts + len(self.runs) - 1]
        keys, numbers = np.unique(known_by, return_inverse=True)
        runs = np.full(len(self.words), -1)
        runs[starts] = numbers
        self.runs.append(runs)
        self.keys.append(keys)

    def read(self, text: str) -> None:
        """Look for all runs in a piece of the training text."""
        raw = WORD.findall(text)
        ids = np.fromiter(map(self.id_of, raw), dtype=np.int64, count=len(raw))
        places = np.flatnonzero(ids < self.stranger)  # where runs begin that stand in a text, and their numbers
        runs, length = ids[places], 1
        longer: dict[int, int] = {}  # text, and the place of a run that is longer than what was found before
        while len(places):
            hits = np.isin(self.runs[length], runs)
            if length == GRAM:
                self.grams |= hits
            for owner in np.unique(self.owners[hits]).tolist():
                if length > self.shared[owner].words:
                    self.shared[owner].words = length
                    start = np.flatnonzero(hits & (self.owners == owner))[0]
                    longer[owner] = int(places[runs == self.runs[length][start]][0])
            length += 1
            if length == len(self.runs):
                self.add_length()
            inside = places + length <= len(ids)
            places, runs = places[inside], runs[inside]
            known_by = runs * (self.stranger + 1) + ids[places + length - 1]
            runs = np.searchsorted(self.keys[length], known_by)
            same = np.append(self.keys[length], -1)[runs] == known_by
            places, runs = places[same], runs[same]
        for owner, place in longer.items():
            if owner < self.quoted:
                self.shared[owner].passage = quote(text, raw[place : place + self.shared[owner].words])

    def found(self) -> list[Shared]:
        """Return what every text has in common with all that was read."""
        whole = self.left >= GRAM
        for owner, shared in enumerate(self.shared):
            grams = self.grams[whole & (self.owners == owner)]
            shared.grams = float(grams.mean()) if len(grams) else None
        return self.shared


def plain_word(word: str) -> str:
    """Return a word without capitals, accents and apostrophes."""
    plain = word if word.isascii() else unicodedata.normalize("NFKD", word)
    return re.sub("['’‘\u0300-\u036f]", "", plain.lower())


def quote(text: str, words: Sequence[str]) -> str:
    """Return where these words follow one another, as the text writes it, with line breaks as spaces."""
    first, *others = map(re.escape, words)
    # What stands before is looked at after the first word: a pattern that begins with plain letters is found fast.
    run = r"[\W_]+".join([rf"{first}(?<![^\W_]{first})", *others])
    match = re.search(rf"{run}(?![^\W_])", text)
    assert match, "the words were read in this text"
    return " ".join(match[0].split())


def look_up(
    texts: Sequence[str], training: Tokens, tokenizer: PreTrainedTokenizerBase, quoted: int
) -> tuple[list[Shared], dict[str, Any]]:
    """Return what each text has in common with the training text, and how much of that was read.

    Args:
        training: The training text as token shards hold it, a separator before and after each document.
        tokenizer: The one that made them.
        quoted: Of how many of the texts, the first ones, the passage is wanted.

    Returns:
        What was found; and the training text's `tokens` and `words`, the `share` of it that was read, and the seconds.
    """
    started, passages = time.perf_counter(), Passages(texts, quoted)
    begins = range(0, len(training), PIECE)
    pieces = min(PIECES, len(begins))
    # Decoded, a separator reads as a word that stands in no text, so that no run crosses it.
    separator = tokenizer.decode(training[:1])
    words = tokens = 0.0
    chosen = [begins[i * len(begins) // pieces] for i in range(pieces)]
    for begin in tqdm(chosen, desc="training text", unit="piece", disable=None, delay=2, leave=False):
        piece = training[begin : begin + PIECE + OVERLAP]
        text = tokenizer.decode(piece)
        passages.read(text)
        own = min(PIECE, len(piece))
        words += len(text.replace(separator, " ").split()) * own / len(piece)
        tokens += own
    share = tokens / len(training)
    seconds = round(time.perf_counter() - started, 1)
    read = {"tokens": len(training), "words": round(words / share), "share": share, "seconds": seconds}
    return passages.found(), read
