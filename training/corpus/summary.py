"""The end of a data run: shards moved to where pretraining reads them, the books added up, and the report written.

`data_report.json` holds every number; `data_report.html` shows them; `dataset_card.md` becomes the README of the
shards when they are published.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.io import DataFolder

from hf_scratch.hub.files import link_or_copy
from training.corpus.ledger import add_up
from training.corpus.recipe import Source, Step
from training.corpus.report import dataset_card, page
from training.corpus.shards import shard_names
from training.corpus.steps import EVALUATIONS
from training.corpus.works import REPORT
from training.stage.files import write_json

SHARD_FILES = (".bin", ".starts.npy", ".parquet", ".json")


def finish_sources(
    work: DataFolder, output: Path, meta: dict[str, Any], sources: list[Source], steps: list[Step]
) -> dict[str, Any]:
    """Write meta.json, the shards and the report into the stage's folder; return the figures for its record.

    Raises:
        ValueError: Nothing is left to train on, or nothing is held out.
    """
    report = build_report(work, meta, sources, steps)
    for split in ("train", "val"):
        if not report["splits"][split]["documents"]:
            raise ValueError(
                f"there is no {split} text: of {report['total']['documents_in']:,} documents "
                f"{report['total']['documents_out']:,} are left ({_main_reasons(report)}); "
                "change val_fraction or the steps, or give more documents."
            )
    names = shard_names(meta["shards"])
    for name in names:
        for kind in SHARD_FILES:
            _bring(work, f"shards/{name}{kind}", output / f"{name}{kind}")
    for path in work.list_files("dropped"):
        _bring(work, path, output / path)
    content = {key: meta[key] for key in ("dtype", "vocab_size", "tokenizer_sha256")} | report["splits"]
    content["train"]["shards"] = names[1:]
    write_json(output / "data_report.json", report)
    (output / "data_report.html").write_text(page(report), encoding="utf-8")
    (output / "dataset_card.md").write_text(dataset_card(report), encoding="utf-8")
    write_json(output / "meta.json", content)
    total = report["total"]
    print(
        f"{total['documents_in']:,} documents in, {total['documents_out']:,} out, {total['tokens']:,} tokens; "
        f"dropped: {_main_reasons(report)}; see {output / 'data_report.html'}"
    )
    return content | {"total": total}


def _main_reasons(report: dict[str, Any]) -> str:
    reasons = sorted(report["dropped"].items(), key=lambda item: -item[1]["documents"])[:5]
    return ", ".join(f"{reason} {found['documents']:,}" for reason, found in reasons) or "nothing"


def _bring(work: DataFolder, name: str, target: Path) -> None:
    """Take a file over from the work folder, which keeps it until all is done: this may be interrupted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".tmp")
    beside.unlink(missing_ok=True)
    if work.is_local():
        link_or_copy(Path(work.resolve_paths(name)), beside)
    else:
        work.get_file(name, str(beside))
    beside.replace(target)


def build_report(work: DataFolder, meta: dict[str, Any], sources: list[Source], steps: list[Step]) -> dict[str, Any]:
    """Return all figures of a run, whose books must balance."""
    clean, kept = add_up(work, "clean"), add_up(work, "tokenize")
    by_source = {source.name: _source_row(source, clean, kept) for source in sources}
    total: Counter[str] = Counter()
    for row in by_source.values():
        total.update({key: row[key] for key in ("documents_in", "bytes_in", "documents_out", "bytes_out", "tokens")})
    dropped = _dropped(clean, kept)
    splits = _splits(work, meta)
    tallies = {**clean["tallies"], **kept["tallies"]}
    return {
        "total": {
            **total,
            "documents_dropped": sum(found["documents"] for found in dropped.values()),
            "bytes_per_token": total["bytes_out"] / max(1, total["tokens"]),
            "masked_addresses": tallies.get("masked", {}).get("addresses", 0),
        },
        "sources": by_source,
        "recipe": [
            {"step": step.name, "options": _without_folders(step.options), "sources": list(step.sources)}
            for step in steps
        ],
        "decontamination": json.loads(work.cat_file(EVALUATIONS)) if work.isfile(EVALUATIONS) else {},
        "works": json.loads(work.cat_file(REPORT)) if work.isfile(REPORT) else {},
        "steps": _steps(work, steps, clean, kept),
        "dropped": dropped,
        "near_duplicate_groups": [found for name, found in kept["examples"].items() if name.startswith("cluster ")],
        "distributions": {
            name: tallies.get(f"documents by {name}", {}) for name in ("bytes", "tokens", "language", "license")
        },
        "vocabulary": _vocabulary(work, meta),
        "noise": _noise(kept["tallies"], total["documents_out"]),
        "splits": splits,
        "made_by": {key: meta[key] for key in ("seed", "val_fraction", "shards", "dtype")},
    }


def _without_folders(value: Any) -> Any:
    """Return options with the names alone of files of this machine: report and card are made to be published."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and re.match(r"/|~|file:|[A-Za-z]:\\", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    return value


def _source_row(source: Source, clean: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Return a source's books, which balance: documents in = documents out + documents dropped by reason."""
    first, last = clean["sources"].get(source.name, {}), kept["sources"].get(source.name, {})
    dropped: Counter[str] = Counter()
    for books in (clean, kept):
        dropped.update(books["dropped"].get(source.name, {}))
    row = {
        **({"dataset": source.dataset, "revision": source.revision} if source.dataset else {}),
        "license": source.license,
        "weight": source.weight,
        "documents_in": first.get("documents_in", 0),
        "bytes_in": first.get("bytes_in", 0),
        "documents_out": last.get("documents_out", 0),
        "bytes_out": last.get("bytes_out", 0),
        "tokens": kept["tallies"].get("tokens by source", {}).get(source.name, 0),
        "dropped": dict(dropped.most_common()),
    }
    assert first.get("documents_out", 0) == last.get("documents_in", 0), f"{source.name}: lost between passes"
    assert row["documents_in"] == row["documents_out"] + dropped.total(), f"{source.name}: {row}"
    return row


def _dropped(*passes: dict[str, Any]) -> dict[str, Any]:
    """Return for each reason how many documents and bytes were dropped, and examples; the main reason first."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    examples: dict[str, Any] = {}
    for books in passes:
        for found in books["dropped"].values():
            documents.update(found)
        sizes.update(books["tallies"].get("bytes dropped", {}))
        examples |= books["examples"]
    return {
        reason: {"documents": number, "bytes": sizes[reason], "examples": examples.get(reason, [])}
        for reason, number in documents.most_common()
    }


def _steps(work: DataFolder, steps: list[Step], clean: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Return what went in and out of each step, and how fast; seconds are of all processes together."""
    order = ["read", *(step.name for step in steps)]
    rows: dict[str, Any] = {name: dict(clean["steps"][name]) for name in order if name in clean["steps"]}
    left = {kind: sum(row.get(f"{kind}_in", 0) for row in kept["sources"].values()) for kind in ("documents", "bytes")}
    lost = _dropped(kept)
    for name, reason in (("exact duplicates", "exact_duplicate"), ("near duplicates", "near_duplicate")):
        seconds = pass_seconds(work, name)
        if seconds:
            before = {f"{kind}_in": number for kind, number in left.items()}
            left = {kind: number - lost.get(reason, {}).get(kind, 0) for kind, number in left.items()}
            rows[name] = before | {f"{kind}_out": number for kind, number in left.items()} | {"seconds": seconds}
    rows |= {name: dict(counts) for name, counts in kept["steps"].items()}
    if "write" in rows:  # the documents that were tokenized
        rows["write"] |= {key: rows["tokenize"][key] for key in ("documents_in", "documents_out", "bytes_in")}
    rows["shuffle"] = {
        "bytes_in": rows.get("tokenize", {}).get("bytes_in", 0),
        "seconds": pass_seconds(work, "shuffle"),
    }
    for row in rows.values():
        row["mb_per_s"] = row["bytes_in"] / 1e6 / row["seconds"] if row.get("seconds") and "bytes_in" in row else None
    return rows


def pass_seconds(work: DataFolder, name: str) -> float:
    """Return the time that all tasks of the passes of this name took, as datatrove has measured it."""
    total = 0.0
    for path in work.list_files(glob_pattern=f"logs/{name.replace(' ', '-')}*/stats/*.json"):
        with work.open(path, "rb") as file:
            # The steps of a task run into one another; the last one that measures itself includes those before.
            total += max(
                (step["time_stats"]["total"] for step in json.loads(file.read()) if step["time_stats"]), default=0
            )
    return total


def _vocabulary(work: DataFolder, meta: dict[str, Any]) -> dict[str, Any]:
    used = np.zeros(meta["vocab_size"], dtype=np.int64)
    for path in work.list_files(glob_pattern="parts/vocabulary-*.npy"):
        with work.open(path, "rb") as file:
            used += np.load(file)
    share = np.sort(used)[::-1].cumsum() / max(1, used.sum())
    return {
        "size": meta["vocab_size"],
        "used": int((used > 0).sum()),
        "used_100_times": int((used >= 100).sum()),
        "tokens_for_half_of_the_text": int(np.searchsorted(share, 0.5)) + 1,
    }


def _noise(tallies: dict[str, dict[str, int]], documents: int) -> dict[str, Any]:
    signs = {sign: n for sign, n in tallies.get("documents with a sign of noise", {}).items() if sign != "none"}
    noisy = tallies.get("noise", {}).get("documents", 0)
    return {"documents": noisy, "share": noisy / max(1, documents), "signs": signs}


def _splits(work: DataFolder, meta: dict[str, Any]) -> dict[str, Any]:
    splits: dict[str, Any] = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in ("train", "val")}
    for name in shard_names(meta["shards"]):
        with work.open(f"shards/{name}.json", "rb") as file:
            facts = json.loads(file.read())
        row = splits[name.split("-")[0]]
        row["documents"] += facts["documents"]
        row["bytes"] += facts["bytes"]
        # A shard ends with a separator; read one after the other they have a single one at the end.
        row["tokens"] += facts["tokens"] - 1
    for row in splits.values():
        row["tokens"] += 1
    return splits
