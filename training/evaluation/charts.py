"""Line charts as inline SVG: no script, no font, no network, and the colours of the page they stand in.

A chart shows the values that were measured, over optimizer steps; colours are the page's CSS variables `--c1` to
`--c6`, so that light and dark are one picture.
"""

import html
import math
from collections.abc import Sequence

Series = tuple[str, list[tuple[float, float]]]  # label, points
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 26
COLOURS = 6


def line_chart(title: str, series: Sequence[Series]) -> str:
    """Return a figure with its title, legend and lines; without finite points there is none."""
    finite = [(label, [(x, y) for x, y in points if math.isfinite(y)]) for label, points in series]
    drawn = [(i, label, points) for i, (label, points) in enumerate(finite) if points]
    if not drawn:
        return ""
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    x_ticks, y_ticks = ticks(0, max(xs), 5), ticks(min(ys), max(ys), 4)
    left, right = 0.0, max(*xs, 1)
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left)
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        y = place(left, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        if tick <= right:
            x = place(tick, low)[0]
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>')
    for i, label, points in drawn:
        parts.append(line(i, label, [(x, y, *place(x, y)) for x, y in points]))
    legend = "".join(
        f'<span class="key"><i style="background:{colour(i)}"></i>{html.escape(label)} '
        f"<b>{number(points[-1][1])}</b></span>"
        for i, label, points in drawn
    )
    name = html.escape(title)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{name}</figcaption><div class='keys'>{legend}</div>{picture}</figure>"


def line(index: int, label: str, points: list[tuple[float, float, float, float]]) -> str:
    """Return a line; few points are dots as well, and every dot says its step and value to the pointer."""
    path = " ".join(f"{px:.1f},{py:.1f}" for _, _, px, py in points)
    parts = [f'<polyline style="stroke:{colour(index)}" points="{path}"/>']
    shown = len(points) <= 12
    every = 1 if shown else math.ceil(len(points) / 60)
    for x, y, px, py in points[::every]:
        parts.append(
            f'<circle class="{"dot" if shown else "hit"}" style="fill:{colour(index)}" cx="{px:.1f}" cy="{py:.1f}" '
            f'r="{2.6 if shown else 5}"><title>{html.escape(label)}, step {number(x)}: {number(y)}</title></circle>'
        )
    return "".join(parts)


def colour(index: int) -> str:
    """Return the page's colour of a series."""
    return f"var(--c{index % COLOURS + 1})"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers that enclose low and high."""
    scale = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(scale, 1e-9):
        around = scale / 2 if scale > 1e-9 else 0.5
        low, high = low - around, high + around
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Write a number in as few digits as say it."""
    if abs(value) >= 10000:
        return f"{value / 1000:,.0f}k" if abs(value) < 1e6 else f"{value / 1e6:,.1f}M"
    return f"{value:,.4g}"
