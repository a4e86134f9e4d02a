"""Turn text into token shards that pretraining memory-maps: a stream of ids and where each document starts.

    python -m training.prepare_data --tokenizer runs/mine/tokenizer --files "books/*.txt" --output_dir runs/mine/data
    python -m training.prepare_data --config data.yaml --tokenizer runs/mine/tokenizer --output_dir runs/mine/data

The first takes text as it is. The second, a recipe with `sources`, reads Common Crawl, wiki dumps, books, code, tables
and Hub data sets, cleans, deduplicates and decontaminates them, and reports what was thrown away, as
`training/corpus/README.md` tells. `train.bin` and `val.bin` (with `sources`: `train-00000.bin`, ...) hold
`<|endoftext|>` and the tokens of each document in turn, and a last `<|endoftext|>`, as uint16 (uint32 above 65,536
tokens); `*.starts.npy` the position of each document; `meta.json` the counts.
"""

import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from training.corpus.readers.hub import pin
from training.corpus.readers.plain import read_documents
from training.corpus.recipe import (
    DocumentSource,
    describe_files,
    evaluation_files,
    expand_files,
    read_sources,
    read_steps,
)
from training.corpus.split import DataSplit, check_val_fraction, cut_batches
from training.stage.config import SameRun, parse_config
from training.stage.files import hash_large_files, write_json
from training.stage.record import Stage, command, open_stage

# Worker processes import this file as well: what takes long to import is imported where it is used.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS: tuple[DataSplit, ...] = ("train", "val")
say = functools.partial(print, flush=True)
ONLY_SOURCES = SameRun(unless=("sources",))  # what text as it is does not use


@dataclass(kw_only=True)
class DataConfig(DocumentSource):
    """Settings of the stage `data`."""

    output_dir: str = field(metadata={"help": "Folder of the shards."})
    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer."})

    steps: Annotated[list[Any], ONLY_SOURCES] = field(
        default_factory=list, metadata={"help": "What each document goes through; YAML only."}
    )
    max_document_bytes: Annotated[int, ONLY_SOURCES] = field(
        default=10_000_000, metadata={"help": "sources: most bytes of a document; a longer one is cut or dropped."}
    )
    tasks: Annotated[int, ONLY_SOURCES] = field(
        default=8, metadata={"help": "sources: parts that the work is cut into; more of them above 50 GB."}
    )
    shards: Annotated[int, ONLY_SOURCES] = field(
        default=8, metadata={"help": "sources: number of training shards; each is shuffled in memory."}
    )
    # Neither where nor by how many processes the work is done changes what comes out.
    workers: Annotated[int, SameRun()] = field(
        default=0, metadata={"help": "sources: processes at once; 0 is one for each core."}
    )
    executor: Annotated[Literal["local", "slurm", "ray", "jobs"], SameRun()] = field(
        default="local", metadata={"help": "sources: where datatrove runs the tasks."}
    )
    executor_options: Annotated[dict, SameRun()] = field(
        default_factory=dict, metadata={"help": "sources: options of datatrove's executor; YAML only."}
    )
    work_dir: Annotated[str | None, SameRun()] = field(
        default=None,
        metadata={
            "help": "sources: folder or URL that all tasks reach, with a folder for each recipe; "
            "output_dir/work if not set."
        },
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(DataConfig, argv, __doc__)
    check_val_fraction(config.val_fraction)
    if config.sources:
        prepare_sources(config)
        return
    if config.steps:
        raise ValueError("steps need sources: name what they clean under `sources` (see training/corpus/README.md).")
    inputs = {"tokenizer": config.tokenizer, "files": expand_files(config.files)}
    stage = open_stage("data", config, inputs, config.output_dir)
    if not stage.done:
        write_stream(config, stage)


def describe_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return how many tokens there are, the smallest type that holds their ids, and the hash of what makes them."""
    from hf_scratch.token_ids import hash_tokenizer

    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    return {"dtype": dtype, "vocab_size": len(tokenizer), "tokenizer_sha256": hash_tokenizer(tokenizer)}


# ---- text as it is ----


def write_stream(config: DataConfig, stage: Stage) -> None:
    """Write each split as one shard, its documents in the order in which they come."""
    from hf_scratch.token_ids import load_encoder

    tokenizer = load_encoder(config.tokenizer)
    meta: dict[str, Any] = describe_tokens(tokenizer)
    for split in SPLITS:
        meta[split] = write_split(stage.folder, split, tokenizer, read_documents(config, split), meta["dtype"])
        print("{0}: {documents:,} documents, {tokens:,} tokens, {bytes:,} bytes".format(split, **meta[split]))
    write_json(stage.folder / "meta.json", meta)
    finish(stage, meta)


def write_split(
    folder: Path, split: DataSplit, tokenizer: "PreTrainedTokenizerBase", documents: Iterator[str], dtype: str
) -> dict[str, int]:
    """Write one split's stream and starts, and return its counts."""
    from hf_scratch.tokenizer import encode_texts, separator_of

    separator = separator_of(tokenizer)
    starts: list[int] = []
    position = num_bytes = 0
    with (folder / f"{split}.bin").open("wb") as file:
        for batch in cut_batches(documents, lambda text: len(text.encode())):
            num_bytes += sum(len(text.encode()) for text in batch)
            for ids in encode_texts(tokenizer, batch):
                starts.append(position)
                file.write(np.array([separator, *ids], dtype=dtype).tobytes())
                position += 1 + len(ids)
        file.write(np.array([separator], dtype=dtype).tobytes())
    np.save(folder / f"{split}.starts.npy", np.array(starts, dtype=np.int64))
    if not starts:
        raise ValueError(f"there is no {split} text; change val_fraction or give more documents.")
    return {"documents": len(starts), "tokens": position + 1, "bytes": num_bytes}


# ---- sources, cleaned ----


def prepare_sources(config: DataConfig) -> None:
    """Clean, deduplicate, tokenize and shuffle the sources of a recipe, and report on them."""
    if config.dataset:
        raise ValueError("the recipe has sources; name data sets there, not by --dataset.")
    sources = read_sources(config.sources, config.files)
    steps = read_steps(config.steps, sources)
    for name in ("tasks", "shards"):
        if not 1 <= getattr(config, name) <= 100_000:
            raise ValueError(f"{name}={getattr(config, name)} must be between 1 and 100,000.")
    evaluations = [file.path for step in steps if step.name == "decontaminate" for file in evaluation_files(step)]
    inputs: dict[str, str | list[str] | None] = {
        "tokenizer": config.tokenizer,
        "decontaminate": evaluations,
        "listing": describe_files(sources),
    }
    stage = open_stage("data", config, inputs, config.output_dir)
    if stage.done:
        return
    try:
        from training.corpus.passes import plan, run_passes
        from training.corpus.summary import finish_sources
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; `pip install 'hf_scratch[data]'` brings it.") from None
    from datatrove.io import get_datafolder

    folder = get_datafolder(work_place(config, stage))
    workers = config.workers or ((os.cpu_count() or 1) if config.executor == "local" else -1)  # -1: no limit
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers == 1 else "false"  # one core each is enough then
    os.environ["TQDM_DISABLE"] = "1"  # in the worker processes, whose bars would be mixed up
    tokenizer, meta = describe_tokenizer(config)
    sources = pin(sources, folder)
    passes = plan(folder, sources, steps, tokenizer, meta, config.tasks, config.max_document_bytes)
    if not run_passes(passes, folder, workers, config.executor, config.executor_options, say):
        say("the tasks are submitted; the same command, when they are done, writes the report.")
        return
    finish(stage, finish_sources(folder, stage.folder, meta, sources, steps))
    if not config.work_dir:
        shutil.rmtree(stage.folder / "work")


def finish(stage: Stage, figures: dict[str, Any]) -> None:
    """Write the record, and in it the hashes of the shards, so that training need not read them all at every start."""
    stage.record["large_files"] = hash_large_files(stage.folder)
    stage.finish(figures)


def work_place(config: DataConfig, stage: Stage) -> str:
    """Return the folder or URL in which the passes leave their results."""
    if not config.work_dir:
        return str((stage.folder / "work").absolute())
    # What one recipe has done must not count as done for another one that works in the same place.
    return f"{os.path.expanduser(config.work_dir).rstrip('/')}/{stage.record['fingerprint'][:16]}"


def describe_tokenizer(config: DataConfig) -> tuple[str, dict[str, Any]]:
    """Return the tokenizer as JSON for the worker processes, and what the shards are made by."""
    from hf_scratch.token_ids import load_encoder
    from hf_scratch.tokenizer import separator_of, text_backend

    tokenizer = load_encoder(config.tokenizer)
    return text_backend(tokenizer).to_str(), {
        **describe_tokens(tokenizer),
        "separator": separator_of(tokenizer),
        "shards": config.shards,
        "seed": config.seed,
        "val_fraction": config.val_fraction,
    }


if __name__ == "__main__":
    main()
