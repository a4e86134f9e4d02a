"""Measure the data stage: speed of each step beside plain reading and plain tokenizing, cost and memory by size.

    python -m benchmarks.data --megabytes 20 20 20 100 --output_dir runs/benchmarks/data

A size that stands there several times shows the spread. Each is made of sentences of the standard library's
documentation, drawn at random so that no two documents are alike, and of defects (copies, near copies, addresses,
another language); prepared with every step by a process of its own; and removed again. `results.json` has the figures
of all runs in the folder, `README.md` a table of them.
"""

import gzip
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.stage.config import parse_config
from training.stage.files import read_json, write_json
from training.stage.record import command, environment

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
FILES = 8
PROSE = re.compile(r"[A-Z][a-z ,;:'()-]+[.!?]")  # what the quality filters let through
GERMAN = "Der alte Lehrer ging am Abend langsam durch den Garten und dachte an seine Kindheit. " * 20
# Bytes that the work needs beside a byte of text: the corpus, clean documents, signatures, tokens, shards.
DISK = 3


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Settings of the measurement."""

    output_dir: str = field(metadata={"help": "Folder of results.json and README.md."})
    megabytes: list[int] = field(default_factory=lambda: [20, 100], metadata={"help": "Sizes of text to measure."})
    workers: int = field(default=0, metadata={"help": "Processes; 0 takes one for each core."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens of the tokenizer that is trained for it."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure all sizes, one after the other."""
    config = parse_config(BenchmarkConfig, argv, __doc__)
    folder, workers = Path(config.output_dir), config.workers or os.cpu_count() or 1
    folder.mkdir(parents=True, exist_ok=True)
    pool = sentences()
    results = read_json(folder / "results.json") or {"runs": []}
    for megabytes in config.megabytes:
        with tempfile.TemporaryDirectory(prefix="benchmark-data-") as scratch:
            disk = os.statvfs(scratch)
            if (free := disk.f_bavail * disk.f_frsize) < DISK * megabytes * 1_000_000:
                raise ValueError(
                    f"{megabytes} MB need {DISK * megabytes} MB of disk, {scratch} has {free // 10**6} MB."
                )
            found = measure(Path(scratch), pool, megabytes, workers, config.vocab_size)
        results["runs"].append(found | environment())
        write_json(folder / "results.json", results)
        (folder / "README.md").write_text(table(results["runs"]), encoding="utf-8")
        print(
            f"{megabytes} MB: {found['seconds']} s, {found['peak_memory_mb']} MB; see {folder}/README.md", flush=True
        )


# ---- the text ----


def sentences() -> list[str]:
    """Return the sentences of the documentation that every Python brings along, each once."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test"} & set(path.parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            parts = [text.replace("\\n", "\n")] if path.name == "topics.py" else text.split('"""')[1::2]
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", "\n\n".join(parts)):
                line = " ".join(sentence.split())
                if 30 <= len(line) <= 400 and PROSE.fullmatch(line):
                    found.add(line)
    return sorted(found)


def documents(pool: list[str], seed: int) -> Iterator[str]:
    """Yield documents of 10 to 50 sentences, of which one in ten is a copy, a near copy or spoilt."""
    rng = random.Random(seed)
    earlier: list[str] = []
    while True:
        drawn = rng.choices(pool, k=rng.randrange(10, 50))
        text = "\n\n".join(" ".join(drawn[i : i + 5]) for i in range(0, len(drawn), 5))
        kind = rng.random()
        if kind < 0.03 and earlier:
            text = rng.choice(earlier)
        elif kind < 0.06 and earlier:
            text = rng.choice(earlier) + "\n\nTold again by somebody else."
        elif kind < 0.09:
            text += f" Write to reader{rng.randrange(10**6)}@mail.org from 8.8.{rng.randrange(256)}.1."
        elif kind < 0.10:
            text = GERMAN
        if len(earlier) < 1000:
            earlier.append(text)
        yield text


def write_corpus(folder: Path, pool: list[str], megabytes: int) -> int:
    """Write documents to compressed files of JSON lines; return the bytes of text."""
    folder.mkdir(parents=True)
    total = 0
    for number in range(FILES):
        source, size = documents(pool, number), 0
        with gzip.open(folder / f"{number}.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            while size < megabytes * 1_000_000 // FILES:
                text = next(source)
                size += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
        total += size
    return total


# ---- the measurement ----


def measure(folder: Path, pool: list[str], megabytes: int, workers: int, vocab_size: int) -> dict[str, Any]:
    """Prepare a corpus of this size in a process of its own; return times, speeds and memory."""
    from hf_scratch.tokenizer import train_tokenizer

    corpus, tokenizer, output = folder / "corpus", folder / "tokenizer", folder / "data"
    print(f"writing {megabytes} MB of text", flush=True)
    size = write_corpus(corpus, pool, megabytes)
    train_tokenizer(pool, vocab_size, show_progress=False).save_pretrained(tokenizer)
    recipe = folder / "data.yaml"
    sources = [{"name": "corpus", "files": str(corpus / "*.jsonl.gz")}]
    recipe.write_text(yaml.safe_dump({"sources": sources, "steps": STEPS}), encoding="utf-8")
    words = ["--config", str(recipe), "--tokenizer", str(tokenizer), "--output_dir", str(output)]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "training.prepare_data", *words, "--workers", str(workers)])
    memory, cpu_seconds = watch(process)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise ValueError(f"preparing {megabytes} MB failed with status {process.returncode}; see above.")
    report, pieces = read_json(output / "data_report.json"), plain_speeds(corpus, tokenizer, workers)
    steps, plain = report["steps"], statistics.median(pieces["encode_batch"])
    written = steps["tokenize"]["bytes_in"] / 1e6 / (steps["tokenize"]["seconds"] + steps["write"]["seconds"])
    return {
        "text_mb": round(size / 1e6, 1),
        "workers": workers,
        "seconds": round(seconds, 1),
        # Of all processes, start-up included; unlike the seconds it hardly depends on what else the machine does.
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_memory_mb": round(memory / 1e6),
        "steps_mb_per_s": {name: round(row["mb_per_s"], 2) for name, row in steps.items() if row["mb_per_s"]},
        "plain_mb_per_s": pieces,
        "tokenize_share_of_encode_batch": round(steps["tokenize"]["mb_per_s"] / plain, 3),
        "tokenize_and_write_share": round(written / plain, 3),
        "reader_share_of_a_step": reader_shares(output),
        "documents": report["total"],
        "cpu": cpu_name(),
    }


def watch(process: subprocess.Popen) -> tuple[int, float]:
    """Wait for a process; return the most bytes that it and its children held at once, and their processor seconds.

    Pages that several share are counted once. A process's last 0.3 seconds may be missing from its time.
    """
    import psutil

    peak, used = 0, {}
    while process.poll() is None:
        total = 0
        try:
            parent = psutil.Process(process.pid)
            for one in [parent, *parent.children(recursive=True)]:
                total += one.memory_full_info().pss
                used[one.pid, one.create_time()] = sum(one.cpu_times()[:2])  # without what children add to it
        except psutil.Error:  # one of them has just ended
            total = 0
        peak = max(peak, total)
        time.sleep(0.3)
    return peak, sum(used.values())


def plain_speeds(corpus: Path, tokenizer: Path, workers: int) -> dict[str, list[float]]:
    """Return MB/s of the pieces that no program can do without, a value for each of some rounds.

    As many processes measure at once as prepared the data, because cores share caches and memory.
    """
    files = [corpus / f"{number}.jsonl.gz" for number in range(min(workers, FILES))]
    with ProcessPoolExecutor(len(files), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(plain_pieces, files, [tokenizer] * len(files)))
    return {name: sorted(round(value, 2) for one in found for value in one[name]) for name in found[0]}


def plain_pieces(path: Path, tokenizer: Path, rounds: int = 5) -> dict[str, list[float]]:
    """Return MB/s of reading compressed lines, and of `encode_batch`, which sees each text once as in the pipeline."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(200 * rounds), strict=False)]

    def read() -> int:
        with gzip.open(path, "rb") as file:
            return sum(len(line) for line in file)

    def encode(batch: list[str]) -> int:
        backend.encode_batch(batch, add_special_tokens=False)
        return sum(len(text.encode()) for text in batch)

    batches = [texts[i::rounds] for i in range(rounds)]
    return {
        "gzip_lines": [speed(read) for _ in range(2)],
        "encode_batch": [speed(lambda batch=batch: encode(batch)) for batch in batches],
    }


def speed(work: Callable[[], int]) -> float:
    """Return the MB/s of work that returns how many bytes it was."""
    started = time.perf_counter()
    size = work()
    return size / 1e6 / (time.perf_counter() - started)


def reader_shares(data: Path, context: int = 512, rows: int = 8, steps: int = 5) -> dict[str, float]:
    """Return the time of each reader as a share of a training step on what it reads, by the quickstart's model."""
    import numpy as np

    from hf_scratch import ScratchConfig, ScratchForCausalLM
    from training.engine.mixture import open_data

    size = json.loads((data / "meta.json").read_text(encoding="utf-8"))["vocab_size"]
    model = ScratchForCausalLM(
        ScratchConfig(vocab_size=size, hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
    )
    shares = {}
    for name, entries, packed in (
        ("windows", [str(data)], False),
        ("packed", [str(data)], True),
        ("mixture", [str(data), f"{data}=0.5"], False),
    ):
        reader, _ = open_data(entries, context, 0, packed)
        found = []
        for step in range(steps + 1):
            started = time.perf_counter()
            batch = reader.batch(np.arange(step * rows, (step + 1) * rows))
            read = time.perf_counter() - started
            model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
            found.append(read / (time.perf_counter() - started))
        shares[name] = round(statistics.median(found[1:]), 5)  # the first makes the order of the epoch
    return shares


def cpu_name() -> str:
    """Return what processor this is."""
    path = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.exists() else None
    )
    return found[1] if found else platform.processor()


# ---- the record ----


def table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as Markdown, smallest first."""
    runs = sorted(runs, key=lambda run: run["text_mb"])
    last = runs[-1]
    sizes = " ".join(f"{run['text_mb']:.0f}" for run in runs)
    rows: dict[str, list[Any]] = {
        "seconds": [run["seconds"] for run in runs],
        "MB/s, all processes together": [f"{run['text_mb'] / run['seconds']:.2f}" for run in runs],
        "seconds of processor per MB": [f"{run['cpu_seconds'] / run['text_mb']:.2f}" for run in runs],
        "peak memory of all processes, MB": [run["peak_memory_mb"] for run in runs],
        "documents in": [f"{run['documents']['documents_in']:,}" for run in runs],
        "tokens": [f"{run['documents']['tokens']:,}" for run in runs],
    }
    pieces: dict[str, list[Any]] = {
        name: [run["steps_mb_per_s"].get(name, "") for run in runs] for name in last["steps_mb_per_s"]
    }
    for name in last["plain_mb_per_s"]:
        values = [run["plain_mb_per_s"][name] for run in runs]
        pieces[f"plain {name}"] = [f"{statistics.median(v):.2f} ({v[0]} to {v[-1]})" for v in values]
    shares: dict[str, list[Any]] = {
        "tokenize": [f"{run['tokenize_share_of_encode_batch']:.1%}" for run in runs],
        "tokenize and write": [f"{run['tokenize_and_write_share']:.1%}" for run in runs],
    }
    readers = {
        name: [f"{run['reader_share_of_a_step'][name]:.3%}" for run in runs]
        for name in ("windows", "packed", "mixture")
    }
    machine = f"{last['cpu']}, {last['machine']['cpus']} cores, {last['workers']} processes"
    parts = [
        "# Record: the data stage",
        f"```\npython -m benchmarks.data --megabytes {sizes} --output_dir training/records/data\n```",
        f"{machine}, Python {last['versions']['python']}. A column is a run, of text made of the standard library's\n"
        "documentation with copies and other defects among it.",
        _markdown("MB of text", runs, rows),
        "MB/s of each step alone, of one process while the other works as well; the plain pieces likewise,\n"
        "without anything around them: median (lowest to highest).",
        _markdown("MB/s", runs, pieces),
        "Speed as a share of plain `encode_batch`:",
        _markdown("", runs, shares),
        "Time of the reader as a share of a step of 4,096 tokens, forward and backward, by a model of 4 layers of\n"
        "128; median of 5 steps:",
        _markdown("", runs, readers),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(corner: str, runs: list[dict[str, Any]], rows: dict[str, list[Any]]) -> str:
    lines = ["| " + " | ".join([corner, *(f"{run['text_mb']:.0f} MB" for run in runs)]) + " |"]
    lines.append("| --- |" + " ---: |" * len(runs))
    lines += ["| " + " | ".join([name, *map(str, values)]) + " |" for name, values in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, as each worker has
    main()
