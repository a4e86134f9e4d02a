"""Line charts as inline SVG: no script, no font, no network, and the colours of the page they stand in.

A chart shows the values that were measured, over optimizer steps; colours are the page's CSS variables `--c1` to
`--c6`, so that light and dark are one picture.
"""

import math
from collections.abc import Sequence
from typing import Any

from training.evaluation.figures import number
from training.stage.page import colour

Series = tuple[str, list[tuple[float, float]]]  # label, points
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 26


def line_chart(title: str, series: Sequence[Series]) -> dict[str, Any] | None:
    """Return what charts.html draws: axes, and lines with their last figures; without finite points there is none."""
    finite = [(label, [(x, y) for x, y in points if math.isfinite(y)]) for label, points in series]
    drawn = [(i, label, points) for i, (label, points) in enumerate(finite) if points]
    if not drawn:
        return None
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    x_ticks, y_ticks = ticks(0, max(xs), 5), ticks(min(ys), max(ys), 4)
    right, low, high = max(*xs, 1), y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + x / right * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "rows": [{"y": f"{down(y):.1f}", "text_y": f"{down(y) + 3.5:.1f}", "label": number(y)} for y in y_ticks],
        "columns": [{"x": f"{across(x):.1f}", "label": number(x)} for x in x_ticks if x <= right],
        "lines": [line(i, label, [(x, y, across(x), down(y)) for x, y in points]) for i, label, points in drawn],
    }


def line(index: int, label: str, points: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Return a line; few points are dots as well, and every dot says its step and value to the pointer."""
    shown = len(points) <= 12
    every = 1 if shown else math.ceil(len(points) / 60)
    return {
        "colour": colour(index),
        "label": label,
        "last": number(points[-1][1]),
        "path": " ".join(f"{px:.1f},{py:.1f}" for _, _, px, py in points),
        "kind": "dot" if shown else "hit",
        "radius": 2.6 if shown else 5,
        "dots": [
            {"x": f"{px:.1f}", "y": f"{py:.1f}", "step": number(x), "value": number(y)}
            for x, y, px, py in points[::every]
        ],
    }


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
