"""The passes that clean sources: datatrove executors, one after the other, from files to shuffled shards.

    clean -> [works] -> [exact duplicates] -> [near duplicates] -> tokenize -> shuffle

Each pass is cut into `tasks`, which `workers` processes take up; a task that is finished is not done again. The result
depends on the recipe and the tasks, never on the workers. Everything lies in one folder, local or on object storage.
"""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor.base import PipelineExecutor
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import simplify_text

from training.corpus.ledger import Dropped, Ledger
from training.corpus.recipe import DUPLICATE_STEPS, Source, Step, list_units
from training.corpus.shards import Shuffle, Tokenize
from training.corpus.steps import HASH, WORDS, Clean, build_step
from training.corpus.works import MULTIPLIER, FindRuns, JoinWorks, hash_word

# Documents that share a part J of their 5-word shingles are found with probability 1 - (1 - J^6)^20: 99.8 % at
# J = 0.8, as when a tenth of a text was replaced in one place, and 27 % at J = 0.5 (Leskovec, Rajaraman and Ullman,
# Mining of Massive Datasets, chapter 3).
NEAR_DUPLICATES = {"n_grams": 5, "num_buckets": 20, "hashes_per_bucket": 6}

PRIME = np.uint64(2**61 - 1)

Executor = Literal["local", "slurm", "ray", "jobs"]


@dataclass
class Pass:
    """One pass over the documents: a name that the user sees, its datatrove pipeline and its number of tasks."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int

    @property
    def folder(self) -> str:
        """What its folder of logs is called."""
        return self.name.replace(": ", "-").replace(" ", "-")


class Signatures(MinhashDedupSignature):
    """datatrove's MinHash signatures, faster and in bounded memory.

    A shingle's hash is made of those of its words, which are few, and not of its text; minima are taken of a few
    hundred shingles at a time.
    """

    CHUNK = 512

    def get_shingles(self, text: str) -> np.ndarray:
        """Return a hash of each run of `n_grams` words, (n, 1) uint64."""
        norm = self.config.norm_config
        if text.isascii():  # to look for accents is most of the work of simplifying
            norm = replace(norm, norm_unicode_diacritics=False)
        words = WORDS.word_tokenize(simplify_text(text, norm))
        hashes = np.fromiter(map(hash_word, words), dtype=np.uint64, count=len(words))
        length = max(0, len(words) - self.config.n_grams + 1)
        shingles = np.zeros(length, dtype=np.uint64)
        for place in range(self.config.n_grams):  # a polynomial of the words' hashes, modulo 2^64
            shingles = shingles * MULTIPLIER + hashes[place : place + length]
        return (shingles ^ (shingles >> np.uint64(32))).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Return a list of hashes for each bucket."""
        a, b = self.parameters
        best = np.full(self.num_hashes, PRIME)
        for start in range(0, len(shingles), self.CHUNK):
            # datatrove's family of hashes, modulo 2^61 - 1 by a shift in place of a division.
            hashed = shingles[start : start + self.CHUNK] * a + b
            best = np.minimum(best, ((hashed & PRIME) + (hashed >> np.uint64(61))).min(axis=0))
        return best.reshape(self.config.num_buckets, -1).tolist()


def text_of(document: Document) -> str:
    """Return what exact duplicates have in common."""
    return document.text


def plan(
    folder: DataFolder,
    sources: list[Source],
    steps: list[Step],
    tokenizer: str,
    meta: dict[str, Any],
    tasks: int,
    limit: int,
) -> list[Pass]:
    """Return the passes of a recipe.

    Args:
        folder: Where everything is written.
        tokenizer: JSON of a `tokenizers.Tokenizer`.
        meta: What the shards depend on: dtype, vocab_size, separator, shards, seed, val_fraction.
        tasks: Parts that the work is cut into.
        limit: Bytes of the longest document.
    """
    options = {step.name: step.options for step in steps}
    blocks = [(s, build_step(s, folder, limit)) for s in steps if s.name not in DUPLICATE_STEPS]
    units = list_units(sources, tasks)
    clean = Clean(units, blocks, Ledger(folder, "clean"), limit, meta["val_fraction"])
    write = JsonlWriter(_path(folder, "clean"), "${rank}.jsonl.zst", compression="zstd")
    passes = [Pass("clean", [clean, write], tasks)]
    exact, near = ("exact_duplicates" in options, "near_duplicates" in options)
    if "works" in options:
        passes += _works_passes(folder, tasks, meta["val_fraction"], options["works"])
    if exact:
        passes += _exact_passes(folder, tasks)
    if near:
        before = _without_duplicates(folder, exact=exact)
        passes += _near_passes(folder, _minhash(options["near_duplicates"]), before, tasks)
    ledger = Ledger(folder, "tokenize")
    reading = _without_duplicates(folder, ledger, exact=exact, near=near, works="works" in options)
    weights = {source.name: float(source.weight) for source in sources}
    passes.append(Pass("tokenize", [*reading, Tokenize(folder, tokenizer, meta, weights, ledger)], tasks))
    passes.append(Pass("shuffle", [Shuffle(folder, meta, tasks)], meta["shards"] + 1))
    return passes


def _path(folder: DataFolder, name: str) -> str:
    return folder.resolve_paths(name)


class Start(PipelineStep):
    """Reads the clean documents of a task, and opens the ledger of a pass that keeps one."""

    type = "read"
    name = "read clean documents"

    def __init__(self, folder: DataFolder, ledger: Ledger | None = None, *, works: bool = False) -> None:
        super().__init__()
        self.folder, self.ledger, self.works = folder, ledger, works

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents that task `rank` of the pass `clean` wrote: none if it wrote no file."""
        if self.ledger:
            self.ledger.start(rank)
        name = f"clean/{rank:05d}.jsonl.zst"
        if not self.folder.isfile(name):
            return
        held_out = json.loads(self.folder.cat_file(f"works/{rank:05d}.held_out.json")) if self.works else []
        for number, document in enumerate(JsonlReader(self.folder, compression="zstd").read_file(name)):
            if self.works:
                document.metadata["held_out"] = held_out[number]
            if self.ledger:
                self.ledger.enter(document.metadata["source"], len(document.text.encode()))
            yield document


def _without_duplicates(
    folder: DataFolder,
    ledger: Ledger | None = None,
    *,
    exact: bool = False,
    near: bool = False,
    works: bool = False,
) -> list[PipelineStep]:
    """Read the clean documents but for the duplicates that were found, which a ledger counts."""
    steps: list[PipelineStep] = [Start(folder, ledger, works=works)]
    if exact:
        dropped = Dropped(ledger, "exact_duplicate") if ledger else None
        steps.append(ExactDedupFilter(_path(folder, "exact/found"), _exact(), dropped))
    if near:
        dropped = Dropped(ledger, "near_duplicate") if ledger else None
        steps.append(MinhashDedupFilter(_path(folder, "near/found"), dropped, load_cluster_ids=True))
    return steps


def _exact() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=text_of, hash_config=HASH)


def _exact_passes(folder: DataFolder, tasks: int) -> list[Pass]:
    signatures, found = _path(folder, "exact/signatures"), _path(folder, "exact/found")
    return [
        Pass("exact duplicates: signatures", [Start(folder), ExactDedupSignature(signatures, _exact())], tasks),
        Pass("exact duplicates: search", [ExactFindDedups(signatures, found, _exact(), lines_to_buffer=1000)], 1),
    ]


def _works_passes(folder: DataFolder, tasks: int, val_fraction: float, options: dict[str, Any]) -> list[Pass]:
    if unknown := [name for name in options if name != "authors"]:
        raise ValueError(f"step works has no option {unknown[0]!r}; it has authors: true or false.")
    authors = bool(options.get("authors", False))
    return [
        Pass("works: runs of words", [Start(folder), FindRuns(folder)], tasks),
        Pass("works: groups", [JoinWorks(folder, tasks, val_fraction, authors)], 1),
    ]


def _minhash(options: dict[str, Any]) -> MinhashConfig:
    try:
        return MinhashConfig(**{**NEAR_DUPLICATES, "hash_config": HASH, **options})
    except TypeError as error:
        raise ValueError(f"step near_duplicates: {error}") from None


def _near_passes(folder: DataFolder, config: MinhashConfig, reading: list[PipelineStep], tasks: int) -> list[Pass]:
    signatures, pairs, found = (_path(folder, f"near/{name}") for name in ("signatures", "pairs", "found"))
    sign = Signatures(signatures, config, language=WORDS)
    search = MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=1000)
    cluster = MinhashDedupCluster(pairs, found, config=config, save_cluster_id=True, lines_to_buffer=1000)
    return [
        Pass("near duplicates: signatures", [*reading, sign], tasks),
        Pass("near duplicates: search", [search], config.num_buckets),
        Pass("near duplicates: groups", [cluster], 1),
    ]


def run_passes(
    passes: list[Pass],
    folder: DataFolder,
    workers: int,
    executor: Executor,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> bool:
    """Run the passes, or submit them where a cluster runs them; return whether all of them are finished."""
    previous: PipelineExecutor | None = None
    for number, step in enumerate(passes, start=1):
        left = tasks_left(step, folder)
        say(f"[{number}/{len(passes)}] {step.name}: " + (f"{left} of {step.tasks} tasks" if left else "done before"))
        if left:
            runner = build_executor(step, folder, workers, executor, options, previous)
            with contextlib.redirect_stderr(io.StringIO()):  # datatrove's bars, many to a pass; errors are raised
                runner.run()
            previous = runner
    return not any(tasks_left(step, folder) for step in passes)


def tasks_left(step: Pass, folder: DataFolder) -> int:
    """Return how many tasks of a pass datatrove has not marked as completed."""
    done = len(folder.list_files(f"logs/{step.folder}/completions")) if folder.isdir(f"logs/{step.folder}") else 0
    return step.tasks - done


def build_executor(
    step: Pass,
    folder: DataFolder,
    workers: int,
    executor: Executor,
    options: dict[str, Any],
    previous: PipelineExecutor | None,
) -> PipelineExecutor:
    """Return datatrove's executor for a pass; `options` go to its class."""
    common: dict[str, Any] = {
        "pipeline": step.pipeline,
        "tasks": step.tasks,
        "workers": workers,
        "logging_dir": _path(folder, f"logs/{step.folder}"),
    } | options
    match executor:
        case "local":
            import multiprocess
            from datatrove.executor.local import LocalPipelineExecutor

            # Loaded once, in the process that all workers are forked from: less time for each pass, and less memory.
            multiprocess.set_forkserver_preload(["training.corpus.passes"])
            return LocalPipelineExecutor(**common)
        case "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor

            logs = {"slurm_logs_folder": _path(folder, f"logs/{step.folder}/slurm")}
            return SlurmPipelineExecutor(**{**logs, **common}, depends=previous, job_name=step.folder)
        case "ray":
            from datatrove.executor.ray import RayPipelineExecutor

            return RayPipelineExecutor(**common, depends=previous)
        case "jobs":
            from datatrove.executor.jobs import JobsPipelineExecutor

            return JobsPipelineExecutor(**common, depends=previous, job_name=step.folder)
