"""How the books of a data run look: a page without scripts for the browser, and the card of the published shards.

Whatever a document says is shown as text: nothing in it is HTML or Markdown.
"""

import html
import json
from pathlib import Path
from typing import Any

from hf_scratch.hub.card import license_metadata

# The look of the report on training, and what only this page has.
CSS = (Path(__file__).parent.parent / "report_page.css").read_text(encoding="utf-8")
CSS += """
.stack { display: flex; height: 14px; background: var(--mark); }
.stack i { display: block; height: 100%; min-width: 1px; }
.key i { height: 10px; width: 10px; vertical-align: baseline; }
.keys { margin: 10px 0 14px; }
td { white-space: nowrap; vertical-align: middle; }
td.wide { width: 30%; min-width: 140px; }
figure td.wide { min-width: 60px; }
.rank { display: grid; grid-template-columns: 9em 1fr auto; gap: 4px 10px; align-items: center; padding: 6px 0 4px; }
.rank span { font-size: 13px; overflow-wrap: anywhere; }
summary .stack { width: 100%; margin-top: 2px; height: 8px; }
details.reason { border-bottom: 1px solid var(--line); margin: 0; padding: 4px 0; }
summary b { font-weight: 600; overflow-wrap: anywhere; }
summary small { float: right; }
pre { background: var(--mark); white-space: pre-wrap; overflow-wrap: anywhere; padding: 8px 10px; margin: 2px 0 12px; }
pre, .where { font-size: 13px; }
.where { color: var(--soft); overflow-wrap: anywhere; }
.side > div { white-space: normal; min-width: 0; }
.hist { display: flex; align-items: flex-end; gap: 3px; height: 150px; padding-top: 18px; }
.hist div { flex: 1; position: relative; background: var(--c1); min-height: 1px; }
.hist b { position: absolute; top: -16px; width: 100%; text-align: center; font: 10px system-ui; color: var(--soft); }
.axis { display: flex; gap: 3px; font-size: 10px; color: var(--soft); margin-bottom: 6px; }
.axis span { flex: 1; text-align: center; }
"""
COLOURS = 6  # of the style: --c1 to --c6
KEPT = "var(--good)"


def page(report: dict[str, Any]) -> str:
    """Return the report as one HTML page."""
    parts = [
        _summary(report),
        "<h2>What became of the documents</h2>" + _sources(report),
        "<h2>Steps</h2>" + _steps(report),
        "<h2>What was dropped, and why</h2>" + _dropped(report),
        "<h2>Near duplicates</h2>" + _groups(report),
        *(["<h2>Works</h2>" + _works(report["works"])] if report.get("works") else []),
        "<h2>What is left</h2>" + _distributions(report),
        "<h2>Tokens</h2>" + _tokens(report),
        "<h2>Estimated noise</h2>" + _noise(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>Data report</title><style>{CSS}</style></head><body><main>\n'
        + "\n".join(["<h1>Data report</h1>", *parts])
        + "\n</main></body></html>\n"
    )


# ---- pieces ----


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table; its cells are HTML already."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    wide = "<td class=wide>{}</td>"
    body = "".join(
        "<tr>" + "".join(wide.format(c) if "class=stack" in c else f"<td>{c}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _stack(parts: list[tuple[str, float, str]], whole: float) -> str:
    """Return a bar of parts (name, number, colour), as long as they are of the whole."""
    pieces = "".join(
        f'<i style="width:{100 * number / max(1, whole):.2f}%;background:{colour}" '
        f'title="{html.escape(name)}: {number:,.0f}"></i>'
        for name, number, colour in parts
        if number
    )
    return f"<div class=stack>{pieces}</div>"


def _keys(colours: dict[str, str]) -> str:
    keys = (f'<span class=key><i style="background:{c}"></i>{html.escape(name)}</span>' for name, c in colours.items())
    return f"<div class=keys>{' '.join(keys)}</div>"


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


# ---- sections ----


def _summary(report: dict[str, Any]) -> str:
    total = report["total"]
    kept = total["documents_out"] / max(1, total["documents_in"])
    return (
        f"<p class=lead><b>{total['documents_out']:,}</b> of {total['documents_in']:,} documents are left "
        f"({kept:.1%}): <b>{size(total['bytes_out'])}</b> of {size(total['bytes_in'])} of text, "
        f"<b>{total['tokens']:,}</b> tokens of {total['bytes_per_token']:.2f} bytes. "
        f"{total['masked_addresses']:,} addresses were masked.</p>"
    )


def _colours(report: dict[str, Any]) -> dict[str, str]:
    """Return a colour for what was kept, for each of the main reasons, and for the others."""
    main = list(report["dropped"])[: COLOURS - 1]
    found = {"kept": KEPT} | {reason: f"var(--c{number})" for number, reason in enumerate(main, start=1)}
    return found | ({"other reasons": f"var(--c{COLOURS})"} if len(report["dropped"]) > len(main) else {})


def _sources(report: dict[str, Any]) -> str:
    colours = _colours(report)
    rows = []
    for name, row in report["sources"].items():
        parts = {"kept": row["documents_out"]} | dict.fromkeys(list(colours)[1:], 0)
        for reason, number in row["dropped"].items():
            parts[reason if reason in colours else "other reasons"] += number
        bar = _stack([(part, number, colours[part]) for part, number in parts.items()], row["documents_in"])
        rows.append(
            [
                html.escape(name),
                bar,
                *(_number(row[key]) for key in ("documents_in", "documents_out")),
                *(size(row[key]) for key in ("bytes_in", "bytes_out")),
                _number(row["tokens"]),
                f"{row['weight']:g}",
                html.escape(row["license"]),
            ]
        )
    header = ["Source", "", "Documents in", "out", "Text in", "out", "Tokens", "Weight", "Licence"]
    return _keys(colours) + _table(header, rows)


def _steps(report: dict[str, Any]) -> str:
    most = max((row.get("documents_in", 0) for row in report["steps"].values()), default=0)
    rows = []
    for name, row in report["steps"].items():
        before, after = row.get("documents_in", 0), row.get("documents_out", 0)
        parts = [("go on", after, KEPT), ("dropped", before - after, "var(--bad)")]
        rows.append(
            [
                html.escape(name),
                _stack(parts, most),
                *(_number(row.get(key)) for key in ("documents_in", "documents_out")),
                *(size(row[key]) if key in row else "" for key in ("bytes_in", "bytes_out")),
                f"{row.get('seconds', 0):.2f}",
                _number(row.get("mb_per_s")),
            ]
        )
    note = "<p class=note>Seconds and MB/s are of the step alone, the time of all processes added up.</p>"
    keys = _keys({"documents that go on": KEPT, "dropped": "var(--bad)"})
    header = ["Step", "", "Documents in", "out", "Text in", "out", "Seconds", "MB/s"]
    return keys + _table(header, rows) + note + _decontamination(report["decontamination"])


def _decontamination(found: dict[str, int]) -> str:
    if not found:
        return ""
    return (
        f"<p>Documents were compared with {found['texts']:,} texts of evaluations by {found['n_grams']:,} n-grams; "
        f"{found['texts_too_short_to_find']:,} of these texts have too few words to be found.</p>"
    )


def _dropped(report: dict[str, Any]) -> str:
    if not report["dropped"]:
        return "<p>Nothing.</p>"
    most = max(found["documents"] for found in report["dropped"].values())
    blocks = []
    for reason, found in report["dropped"].items():
        examples = "".join(_example(example) for example in found["examples"])
        number = f"{found['documents']:,} ({size(found['bytes'])})"
        bar = _stack([(reason, found["documents"], "var(--bad)")], most)
        title = f"<summary><b>{html.escape(reason)}</b> <small>{number}</small>{bar}</summary>"
        blocks.append(f"<details class=reason>{title}{examples}</details>")
    note = "<p class=note>A click shows examples; all of them are listed in <code>dropped/</code>.</p>"
    return note + "".join(blocks)


def _example(example: dict[str, str]) -> str:
    mark = {"yes": "<b class=yes>kept</b> ", "no": "<b class=no>dropped</b> "}.get(example.get("kept", ""), "")
    where = html.escape(f"{example['source']}: {example['id']}")
    text = f"<pre>{html.escape(example['text'])}</pre>" if example["text"] else ""
    return f"<div><div class=where>{mark}{where}</div>{text}</div>"


def _groups(report: dict[str, Any]) -> str:
    groups = report["near_duplicate_groups"]
    if not groups:
        return "<p>None were found.</p>"
    note = "<p class=note>The first words of some groups of documents that are much alike, of which one is kept.</p>"
    return note + "".join(f"<div class=side>{''.join(map(_example, group))}</div><br>" for group in groups)


def _works(found: dict[str, Any]) -> str:
    """Return which documents hold the same work, and what held-out text still has in common with training text."""
    share = found["of_them_in_training"] / max(1, found["held_out_runs"])
    rows = [
        ["held out" if group["held_out"] else "trained on", html.escape(", ".join(group["documents"]))]
        for group in found["joined"]
    ]
    return (
        f"<p>{found['documents']:,} documents are {found['groups']:,} works or groups of them; each is trained on or "
        f"held out as a whole. Of the held-out runs of 13 words {share:.2%} stand in training text as well.</p>"
    ) + (_table(["", "Documents that share text"], rows) if rows else "")


def _distributions(report: dict[str, Any]) -> str:
    found = report["distributions"]
    figures = [
        _histogram("Documents by length in bytes, up to", found["bytes"]),
        _histogram("Documents by length in tokens, up to", found["tokens"]),
        _ranking("Documents by language", found["language"]),
        _ranking("Documents by licence", found["license"]),
    ]
    return f"<div class=charts>{''.join(figures)}</div>"


def _histogram(title: str, counts: dict[str, int]) -> str:
    """Return upright bars, one for each power of two between the least and the most."""
    if not counts:
        return ""
    powers = [int(name).bit_length() - 1 for name in counts]
    names = [2**power for power in range(min(powers), max(powers) + 1)]
    most = max(counts.values())
    numbers = [counts.get(str(name), 0) for name in names]
    bars = "".join(f'<div style="height:{100 * n / most:.1f}%"><b>{n or ""}</b></div>' for n in numbers)
    axis = "".join(f"<span>{_short(name)}</span>" for name in names)
    return f"<figure><figcaption>{title}</figcaption><div class=hist>{bars}</div><div class=axis>{axis}</div></figure>"


def _ranking(title: str, counts: dict[str, int], shown: int = 12) -> str:
    """Return lying bars, the longest first."""
    order = sorted(counts.items(), key=lambda item: -item[1])
    most = order[0][1] if order else 1
    rows = [
        [html.escape(name), _stack([(name, number, "var(--c1)")], most), f"{number:,}"]
        for name, number in order[:shown]
    ]
    more = f"<p class=note>and {len(order) - shown} more</p>" if len(order) > shown else ""
    return f"<figure><figcaption>{title}</figcaption>{_table(['', '', 'Documents'], rows)}{more}</figure>"


def _tokens(report: dict[str, Any]) -> str:
    vocabulary = report["vocabulary"]
    often, used, all_of_it = (vocabulary[key] for key in ("used_100_times", "used", "size"))
    parts = {
        "at least 100 times": (often, KEPT),
        "1 to 99 times": (used - often, "var(--c5)"),
        "never": (all_of_it - used, "var(--bad)"),
    }
    bar = _stack([(name, number, colour) for name, (number, colour) in parts.items()], all_of_it)
    keys = _keys({f"{name}: {number:,}": colour for name, (number, colour) in parts.items()})
    rows = [
        [name, *(f"{row[key]:,}" for key in ("documents", "tokens")), size(row["bytes"])]
        for name, row in report["splits"].items()
    ]
    return (
        _table(["Split", "Documents", "Tokens", "Text"], rows)
        + f"<h3>How often the {all_of_it:,} tokens of the vocabulary occur</h3>{bar}{keys}"
        + f"<p>The {vocabulary['tokens_for_half_of_the_text']:,} most frequent ones make half of the text.</p>"
    )


def _noise(report: dict[str, Any]) -> str:
    noise = report["noise"]
    text = (
        f"<p>{noise['share']:.2%} of the documents that are left ({noise['documents']:,}) hold a sign of broken "
        "characters or of markup that stayed; in code and texts about code it is no noise.</p>"
    )
    return text + (
        f"<div class=charts>{_ranking('Documents by sign', noise['signs'])}</div>" if noise["signs"] else ""
    )


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
        "text, are held out" + (", works as a whole." if report.get("works") else "."),
        "",
        "## Limits",
        "",
        f"{report['noise']['share']:.2%} of the documents hold a sign of broken characters or leftover markup. E-mail "
        "and IP addresses are masked only if `mask` is among the steps; other personal data may be present.",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
