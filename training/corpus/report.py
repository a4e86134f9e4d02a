"""How the books of a data run look: a page without scripts for the browser, and the card of the published shards.

Whatever a document says is shown as text: nothing in it is HTML or Markdown.
"""

import json
from typing import Any

from hf_scratch.hub.card import license_metadata
from training.stage.page import COLOURS, colour, render

KEPT = "var(--good)"
SHOWN = 12  # bars of a ranking


def page(report: dict[str, Any]) -> str:
    """Return the report as one HTML page."""
    colours = _colours(report)
    return render(
        "corpus/report.html",
        title="Data report",
        report=report,
        colours=colours,
        bars={name: _bar(row, colours) for name, row in report["sources"].items()},
        lengths={unit: _histogram(report["distributions"][unit]) for unit in ("bytes", "tokens")},
        kept=KEPT,
        shown=SHOWN,
        number=_number,
        size=size,
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def size(num_bytes: float) -> str:
    """Write a number of bytes for people, as 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _short(number: int) -> str:
    """Write a power of two in few characters, as 4k for 4,096."""
    for unit, value in (("G", 2**30), ("M", 2**20), ("k", 2**10)):
        if number >= value:
            return f"{number // value}{unit}"
    return str(number)


def _colours(report: dict[str, Any]) -> dict[str, str]:
    """Return a colour for what was kept, for each of the main reasons, and for the others."""
    main = list(report["dropped"])[: COLOURS - 1]
    found = {"kept": KEPT} | {reason: colour(number) for number, reason in enumerate(main)}
    return found | ({"other reasons": colour(COLOURS - 1)} if len(report["dropped"]) > len(main) else {})


def _bar(row: dict[str, Any], colours: dict[str, str]) -> list[tuple[str, float, str]]:
    """Return the parts of a source's bar (name, documents, colour): what was kept, and dropped by reason."""
    parts = {"kept": row["documents_out"]} | dict.fromkeys(list(colours)[1:], 0)
    for reason, number in row["dropped"].items():
        parts[reason if reason in colours else "other reasons"] += number
    return [(part, number, colours[part]) for part, number in parts.items()]


def _histogram(counts: dict[str, int]) -> list[dict[str, Any]]:
    """Return the bars of a histogram, one for each power of two between the least and the most."""
    if not counts:
        return []
    powers = [int(name).bit_length() - 1 for name in counts]
    names = [2**power for power in range(min(powers), max(powers) + 1)]
    most = max(counts.values())
    numbers = {name: counts.get(str(name), 0) for name in names}
    return [{"name": _short(name), "number": n, "height": f"{100 * n / most:.1f}"} for name, n in numbers.items()]


# ---- card ----


def dataset_card(report: dict[str, Any]) -> str:
    """Return the README of the shards as a data set on the Hub."""
    total, licenses = report["total"], sorted(report["distributions"]["license"])
    languages = [name for name in report["distributions"]["language"] if name != "not identified"]
    front = {
        **(license_metadata(licenses[0]) if len(licenses) == 1 and licenses[0] != "unknown" else {"license": "other"}),
        "tags": ["hf_scratch", "tokenized"],
        "task_categories": ["text-generation"],
        "language": languages[:50],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    lines += [
        "# Token shards",
        "",
        f"{total['tokens']:,} tokens of {total['documents_out']:,} documents ({size(total['bytes_out'])} of text), "
        f"left of {total['documents_in']:,} documents. Licences of the documents: {', '.join(map(_plain, licenses))}.",
        "",
        "| source | licence | weight | documents in | documents out | tokens |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["sources"].items():
        counts = " | ".join(f"{row[key]:,}" for key in ("documents_in", "documents_out", "tokens"))
        lines.append(f"| {_plain(name)} | {_plain(row['license'])} | {row['weight']:g} | {counts} |")
    named = [(row["dataset"], row["revision"]) for row in report["sources"].values() if row.get("revision")]
    lines += (
        ["", *(f"`{_plain(dataset)}` was read at `{_plain(commit)}`." for dataset, commit in named)] if named else []
    )
    lines += ["", "## Steps", ""]
    lines += [f"- `{step['step']}` {_plain(json.dumps(step['options']))}" for step in report["recipe"]] or ["None."]
    lines += ["", "## Dropped", "", "| reason | documents |", "| --- | ---: |"]
    lines += [f"| {_plain(reason)} | {found['documents']:,} |" for reason, found in report["dropped"].items()]
    made = report["made_by"]
    lines += [
        "",
        "## Files",
        "",
        f"`train-*.bin` and `val.bin` are streams of {made['dtype']} token ids, little-endian: a separator, a "
        "document, a separator and so on. `*.starts.npy` has the position of each separator before a document, "
        "`*.parquet` the id, source, licence, address and language of each document, `tokenizer/` the tokenizer. "
        f"Documents are shuffled by seed {made['seed']}; {made['val_fraction']:g} of them, chosen by a hash of their "
        f"text, are held out{', works as a whole' if report.get('works') else ''}.",
        "",
        "## Limits",
        "",
        f"{report['noise']['share']:.2%} of the documents hold a sign of broken characters or leftover markup. E-mail "
        "and IP addresses are masked only if `mask` is among the steps; other personal data may be present.",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
