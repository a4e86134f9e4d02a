"""Measure the data stage: speed of each step beside plain reading and plain tokenizing, cost and memory by size.

    python -m benchmarks.data --megabytes 20 100 --output_dir runs/benchmarks/data

Makes documents of about 2 kB with defects (copies, near copies, addresses, other languages), as much as is asked for,
prepares them with every step, and writes `results.json`. The text is generated, so compression and hit rates are not
those of the web; times by size and by step are what this is for.
"""

import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_scratch.tokenizer import train_tokenizer
from training.data import stories
from training.stage import command, environment, parse_config, read_json, write_json

STEPS: list[Any] = [
    "fix_encoding",
    "normalize",
    "mask",
    {"language": {"keep": ["en"], "min_score": 0.3}},
    "gopher_quality",
    {"fineweb_quality": {"line_punct_thr": 0.0, "short_line_thr": 1.0, "char_duplicates_ratio": 0.5}},
    "exact_duplicates",
    "near_duplicates",
]


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Settings of the measurement."""

    output_dir: str = field(metadata={"help": "Folder of the corpora, the shards and results.json."})
    megabytes: list[int] = field(default_factory=lambda: [20, 100], metadata={"help": "Sizes of text to measure."})
    workers: int = field(default=0, metadata={"help": "Processes; 0 takes one for each core."})
    vocab_size: int = field(default=1000, metadata={"help": "Tokens of the tokenizer that is trained for it."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure all sizes, one after the other."""
    config = parse_config(BenchmarkConfig, argv, __doc__)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").exists():
        sample = (text for text, _ in zip(documents(0), range(5000), strict=False))
        train_tokenizer(sample, config.vocab_size, show_progress=False).save_pretrained(tokenizer)
    workers = config.workers or os.cpu_count() or 1
    results = read_json(folder / "results.json") or {"environment": environment(), "sizes": {}}
    for megabytes in config.megabytes:
        results["sizes"][str(megabytes)] = measure(folder, tokenizer, megabytes, workers)
        write_json(folder / "results.json", results)
        print(json.dumps(results["sizes"][str(megabytes)], indent=2), flush=True)


def documents(seed: int) -> Iterator[str]:
    """Yield documents: stories, several to a document, of which one in ten is a copy, a near copy or spoilt."""
    rng = random.Random(seed)
    tales = stories.documents("train", seed)
    earlier: list[str] = []
    while True:
        parts = [next(tales) for _ in range(4)]
        text = "\n\n".join(parts)
        kind = rng.random()
        if kind < 0.03 and earlier:
            text = rng.choice(earlier)
        elif kind < 0.06 and earlier:
            text = rng.choice(earlier) + "\n\nTold again by somebody else."
        elif kind < 0.09:
            text += f" Write to reader{rng.randrange(10**6)}@mail.org from 8.8.{rng.randrange(256)}.1."
        elif kind < 0.10:
            text = "Der alte Lehrer ging am Abend langsam durch den Garten. " * 30
        if len(earlier) < 1000:
            earlier.append(text)
        yield text


def write_corpus(folder: Path, megabytes: int) -> int:
    """Write documents to 8 compressed files of JSON lines; return the bytes of text."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for number in range(8):
        source, size = documents(number), 0
        with gzip.open(folder / f"{number}.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            while size < megabytes * 1_000_000 // 8:
                text = next(source)
                size += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
        total += size
    return total


def measure(folder: Path, tokenizer: Path, megabytes: int, workers: int) -> dict[str, Any]:
    """Prepare a corpus of this size in a process of its own; return times, speeds and memory."""
    corpus, output = folder / f"corpus-{megabytes}", folder / f"data-{megabytes}"
    size = write_corpus(corpus, megabytes)
    recipe = folder / f"data-{megabytes}.yaml"
    sources = [{"name": "corpus", "files": str(corpus / "*.jsonl.gz")}]
    recipe.write_text(yaml.safe_dump({"sources": sources, "steps": STEPS}), encoding="utf-8")
    words = ["--config", str(recipe), "--tokenizer", str(tokenizer), "--output_dir", str(output)]
    line = [sys.executable, "-m", "training.prepare_data", *words, "--workers", str(workers)]
    started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(line)
    memory = watch_memory(process)
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise ValueError(f"preparing {megabytes} MB failed with status {process.returncode}; see above.")
    report = read_json(output / "data_report.json")
    plain = plain_speeds(corpus, tokenizer)
    steps = {name: round(row["mb_per_s"], 2) for name, row in report["steps"].items() if row["mb_per_s"]}
    both = sum(report["steps"][name]["seconds"] for name in ("tokenize", "write"))
    return {
        "text_mb": round(size / 1e6, 1),
        "workers": workers,
        "seconds": round(seconds, 1),
        "mb_per_s": round(size / 1e6 / seconds, 2),
        # Of all processes, start-up included; unlike the seconds it hardly depends on what else the machine does.
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime, 1),
        "peak_memory_mb": round(memory / 1e6),
        "steps_mb_per_s": steps,
        "plain_mb_per_s": plain,
        "tokenize_share_of_encode_batch": round(steps["tokenize"] / plain["encode_batch"], 3),
        "tokenize_and_write_share": round(
            report["steps"]["tokenize"]["bytes_in"] / 1e6 / both / plain["encode_batch"], 3
        ),
        "reader_tokens_per_s": reader_speeds(output),
        "documents": report["total"],
    }


def watch_memory(process: subprocess.Popen) -> int:
    """Wait for a process; return the most bytes that it and its children held at once, shared pages counted once."""
    import psutil

    peak = 0
    while process.poll() is None:
        total = 0
        try:
            parent = psutil.Process(process.pid)
            for one in [parent, *parent.children(recursive=True)]:
                total += one.memory_full_info().pss
        except psutil.Error:  # one of them has just ended
            total = 0
        peak = max(peak, total)
        time.sleep(0.2)
    return peak or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def reader_speeds(data: Path, context: int = 1024, rows: int = 2000) -> dict[str, int]:
    """Return how many tokens a second the readers for training give, in batches of 8 rows of `context` tokens."""
    import numpy as np

    from training.data.mixture import open_data

    speeds = {}
    for name, entries, packed in (
        ("windows", [str(data)], False),
        ("packed", [str(data)], True),
        ("mixture", [str(data), f"{data}=0.5"], False),
    ):
        reader, _ = open_data(entries, context, 0, packed)
        reader.batch(np.arange(8))
        started = time.perf_counter()
        for first in range(0, rows, 8):
            reader.batch(np.arange(first, first + 8))
        speeds[name] = round(rows * context / (time.perf_counter() - started))
    return speeds


def plain_speeds(corpus: Path, tokenizer: Path) -> dict[str, float]:
    """Return MB/s of reading compressed lines and of `encode_batch` alone, on one core each, best of three."""
    from tokenizers import Tokenizer

    path = corpus / "0.jsonl.gz"
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(2000), strict=False)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    reading, encoding = [], []
    for _ in range(3):
        started = time.perf_counter()
        with gzip.open(path, "rb") as file:
            read = sum(len(line) for line in file)
        reading.append(read / 1e6 / (time.perf_counter() - started))
        started = time.perf_counter()
        for first in range(0, len(texts), 1000):
            backend.encode_batch(texts[first : first + 1000], add_special_tokens=False)
        encoding.append(size / (time.perf_counter() - started))
    return {"gzip_lines": round(max(reading), 2), "encode_batch": round(max(encoding), 2)}


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, as each worker has
    main()
