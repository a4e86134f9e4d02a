"""How the figures of the guide look: vector graphics, black on white, of the width of the text."""

from typing import Any

import matplotlib.pyplot as plt

COLOURS = ("#3366cc", "#dc6900", "#2f8f4e", "#b03060", "#7a5fb0", "#666666")


def axes(width: float = 6.4, height: float = 3.2, columns: int = 1, **options: Any) -> Any:
    """Return empty axes, or an array of them side by side."""
    plt.rcParams |= {"svg.hashsalt": "guide", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)
    _, made = plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)
    return made
