"""How figures are written: with all digits that say something, and none that do not."""


def figure(value: float, digits: int = 4) -> str:
    """Write a measure with as many digits after the point; a large one, as a perplexity may be, in short."""
    return f"{value:.{digits}f}" if abs(value) < 10000 else number(value)


def number(value: float) -> str:
    """Write a number in as few digits as say it: 0.25, 1,024, 12k, 3.5M, 1.0e+22."""
    size = abs(value)
    if size >= 1e12:
        return f"{value:.1e}"
    for unit, name, digits in ((1e9, "B", 1), (1e6, "M", 1), (1e3, "k", 0)):
        if size >= max(unit, 10000):
            return f"{value / unit:,.{digits}f}{name}"
    return f"{value:,.4g}"
