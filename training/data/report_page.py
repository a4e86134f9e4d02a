"""How the books of a data run look: a page without scripts for the browser, and the card of the published shards.

Whatever a document says is shown as text: nothing in it is HTML or Markdown.
"""

import html
import json
import math
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .3rem .6rem; text-align: right; }
th { border-bottom: 2px solid #999; } td { border-bottom: 1px solid #ddd; } td:first-child, th:first-child
{ text-align: left; } .bar { background: #4a7fb5; display: inline-block; height: .8rem; }
pre { background: #f4f4f4; white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem; margin: .3rem 0; }
details { margin: .3rem 0; } .big { font-size: 1.1rem; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } pre { background: #2a2a2a; }
td { border-color: #444; } }
"""


def page(report: dict[str, Any]) -> str:
    """Return the report as one HTML page."""
    total = report["total"]
    kept = total["documents_out"] / max(1, total["documents_in"])
    parts = [
        f"<p class=big>{total['documents_in']:,} documents in, {total['documents_out']:,} out ({kept:.1%}); "
        f"{size(total['bytes_in'])} in, {size(total['bytes_out'])} out; {total['tokens']:,} tokens, "
        f"{total['bytes_per_token']:.2f} bytes each; {total['masked_addresses']:,} addresses masked.</p>",
        "<h2>Sources</h2>" + _sources(report),
        "<h2>Steps</h2>" + _steps(report),
        "<h2>What was dropped, and why</h2>" + _dropped(report),
        "<h2>Groups of near duplicates</h2>" + _groups(report),
        *(f"<h2>Documents by {name}</h2>" + _bars(counts) for name, counts in report["distributions"].items()),
        "<h2>Tokens</h2>" + _tokens(report),
        "<h2>Estimated noise</h2>" + _noise(report),
    ]
    body = "\n".join(parts)
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Data</title><style>{STYLE}"
    return f"<!doctype html><html lang=en><head>{head}</style></head><body><h1>Data report</h1>{body}</body></html>\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table; its cells are HTML already."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def size(num_bytes: float) -> str:
    """Write a number of bytes for people, as 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _sources(report: dict[str, Any]) -> str:
    rows = [
        [
            html.escape(name),
            html.escape(row["license"]),
            f"{row['weight']:g}",
            _number(row["documents_in"]),
            size(row["bytes_in"]),
            _number(row["documents_out"]),
            size(row["bytes_out"]),
            _number(row["tokens"]),
        ]
        for name, row in report["sources"].items()
    ]
    header = ["Source", "Licence", "Weight", "Documents in", "Text in", "Documents out", "Text out", "Tokens"]
    return _table(header, rows)


def _steps(report: dict[str, Any]) -> str:
    rows = [
        [
            html.escape(name),
            _number(row.get("documents_in")),
            _number(row.get("documents_out")),
            size(row["bytes_in"]) if "bytes_in" in row else "",
            f"{row.get('seconds', 0):.2f}",
            _number(row.get("mb_per_s")),
        ]
        for name, row in report["steps"].items()
    ]
    note = "<p>Seconds and MB/s are of all processes together, of the step alone.</p>"
    return _table(["Step", "Documents in", "Documents out", "Text in", "Seconds", "MB/s"], rows) + note


def _dropped(report: dict[str, Any]) -> str:
    if not report["dropped"]:
        return "<p>Nothing.</p>"
    blocks = []
    for reason, found in report["dropped"].items():
        examples = "".join(_example(example) for example in found["examples"])
        title = f"{html.escape(reason)}: {found['documents']:,}"
        blocks.append(f"<details><summary>{title}</summary>{examples}</details>")
    return "".join(blocks) + "<p>All of them are listed in <code>dropped/</code>.</p>"


def _example(example: dict[str, str]) -> str:
    mark = {"yes": " (kept)", "no": " (dropped)"}.get(example.get("kept", ""), "")
    where = html.escape(f"{example['source']}: {example['id']}{mark}")
    return f"<div>{where}<pre>{html.escape(example['text'])}</pre></div>"


def _groups(report: dict[str, Any]) -> str:
    groups = report["near_duplicate_groups"]
    if not groups:
        return "<p>None were found.</p>"
    return "".join("<details open>" + "".join(map(_example, group)) + "</details>" for group in groups)


def _bars(counts: dict[str, int]) -> str:
    if not counts:
        return "<p>Not counted.</p>"
    names = sorted(counts, key=int) if all(name.isdigit() for name in counts) else sorted(counts, key=counts.get)[::-1]  # type: ignore[arg-type]
    most = max(counts.values())
    label = "up to {:,}" if names[0].isdigit() else "{}"
    rows = [
        [
            html.escape(label.format(int(name) if name.isdigit() else name)),
            f"{counts[name]:,}",
            f"<span class=bar style='width:{math.ceil(20 * counts[name] / most)}rem'></span>",
        ]
        for name in names[:40]
    ]
    return _table(["", "Documents", ""], rows)


def _tokens(report: dict[str, Any]) -> str:
    vocabulary = report["vocabulary"]
    rows = [[name, *(f"{row[key]:,}" for key in ("documents", "tokens", "bytes"))] for name, row in splits(report)]
    return _table(["Split", "Documents", "Tokens", "Bytes"], rows) + (
        f"<p>Of {vocabulary['size']:,} tokens of the vocabulary {vocabulary['used']:,} occur, "
        f"{vocabulary['used_100_times']:,} at least 100 times; the {vocabulary['tokens_for_half_of_the_text']:,} most "
        "frequent ones make half of the text.</p>"
    )


def splits(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the splits with their counts."""
    return list(report["splits"].items())


def _noise(report: dict[str, Any]) -> str:
    noise = report["noise"]
    signs = "".join(f"<li><code>{html.escape(sign)}</code>: {n:,}</li>" for sign, n in noise["signs"].items())
    return (
        f"<p>{noise['share']:.2%} of the documents that are left ({noise['documents']:,}) hold a sign of broken "
        f"characters or of markup that stayed; in code and texts about code it is no noise.</p><ul>{signs}</ul>"
    )


# ---- card ----


def dataset_card(report: dict[str, Any]) -> str:
    """Return the README of the shards as a data set on the Hub."""
    total, licenses = report["total"], sorted(report["distributions"]["license"])
    languages = [name for name in report["distributions"]["language"] if name != "not identified"]
    front = {
        "license": licenses[0] if len(licenses) == 1 and licenses[0] != "unknown" else "other",
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
        "text, are held out.",
        "",
        "## Limits",
        "",
        f"{report['noise']['share']:.2%} of the documents hold a sign of broken characters or leftover markup. E-mail "
        "and IP addresses are masked only if `mask` is among the steps; other personal data may be present.",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
