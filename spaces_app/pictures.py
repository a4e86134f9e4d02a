"""HTML and SVG of the pages, drawn from numbers and text; every text is escaped here, whoever wrote it."""

from collections.abc import Sequence
from html import escape

LOUD = 8.0  # bits: a token at least that surprising has the full colour
FAINT = 0.01  # attention below this is not drawn
CELL = 14  # pixels: a sentence or two fit into a page without scrolling


def token_strip(texts: Sequence[str], surprises: Sequence[float | None], chosen: int, new: int | None) -> str:
    """Draw tokens as buttons, coloured by how much each surprised the model; `new` is the first generated one."""
    buttons = []
    for at, (text, bits) in enumerate(zip(texts, surprises, strict=True)):
        says = "the first token is given" if bits is None else f"{bits:.1f} bits of surprise"
        classes = "token" + " drawn" * (new is not None and at >= new)
        buttons.append(
            f'<button type="button" class="{classes}" data-at="{at}" aria-pressed="{str(at == chosen).lower()}" '
            f'style="--loud:{min((bits or 0) / LOUD, 1):.2f}" title="{escape(says)}" '
            f'aria-label="{escape(text)}, {escape(says)}">{escape(text)}</button>'
        )
    return f'<div class="tokens" role="group" aria-label="Tokens">{"".join(buttons)}</div>'


def bars(rows: Sequence[tuple[str, float, float]]) -> str:
    """Draw the next tokens' shares: text, share of the model, share after temperature and top-k."""
    lines = "".join(
        f'<tr><th scope="row"><code>{escape(text)}</code></th>'
        f'<td class="bar"><span class="own" style="width:{100 * own:.2f}%"></span>'
        f'<span class="used" style="width:{100 * used:.2f}%"></span></td>'
        f"<td>{percent(own)}</td><td>{percent(used)}</td></tr>"
        for text, own, used in rows
    )
    columns = '<th scope="col"><i class="own"></i>Model</th><th scope="col"><i class="used"></i>Sampled</th>'
    head = f'<tr><th scope="col">Next token</th><td></td>{columns}</tr>'
    return f'<table class="bars"><thead>{head}</thead><tbody>{lines}</tbody></table>'


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "&lt;0.1 %"


def attention_map(weights: Sequence[Sequence[float]], texts: Sequence[str], chosen: int) -> str:
    """Draw attention weights as a picture: a row for each position, darker where it looks more."""
    size, margin = len(texts) * CELL, 84
    cells = "".join(
        f'<rect x="{x * CELL}" y="{y * CELL}" width="{CELL}" height="{CELL}" fill-opacity="{weight:.2f}">'
        f"<title>{escape(texts[y])} looks at {escape(texts[x])}: {100 * weight:.0f} %</title></rect>"
        for y, row in enumerate(weights)
        for x, weight in enumerate(row[: y + 1])
        if weight >= FAINT
    )
    labels = "".join(
        f'<text x="-6" y="{(at + 0.7) * CELL}" text-anchor="end">{escape(text[:10])}</text>'
        f'<text transform="translate({(at + 0.7) * CELL},-6) rotate(-60)">{escape(text[:10])}</text>'
        for at, text in enumerate(texts)
    )
    row = f'<rect class="chosen" fill="none" x="0" y="{chosen * CELL}" width="{size}" height="{CELL}"></rect>'
    box = f"{-margin} {-margin} {size + margin + 40} {size + margin + 4}"
    return (
        f'<div class="attention" tabindex="0" role="region" aria-label="Attention picture"><svg viewBox="{box}" '
        f'width="{size + margin + 40}" height="{size + margin + 4}" role="img" '
        f'aria-label="How much each token (row) looks at the tokens before it (column)">'
        f'<rect class="ground" fill="none" width="{size}" height="{size}"></rect>'
        f'<g class="cells">{cells}</g>{row}{labels}</svg></div>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Draw a table whose first column names its rows."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="figures">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
