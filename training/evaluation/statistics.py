"""How sure a number is: 95 % intervals of rates, means and ratios, and paired tests between two models.

Every function says whose method it is. The bootstrap resamples prompts or documents with replacement, 2,000 times,
from a fixed seed.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

Z_95 = statistics.NormalDist().inv_cdf(0.975)
RESAMPLES = 2000


def rate(count: int, n: int) -> dict[str, Any]:
    """Return count / n with its 95 % interval; the rate of nothing is None."""
    if n == 0:
        return {"rate": None, "low": None, "high": None, "count": 0, "n": 0}
    low, high = wilson(count, n)
    return {"rate": count / n, "low": low, "high": high, "count": count, "n": n}


def wilson(count: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (E. B. Wilson, JASA 22, 1927, p. 209).

    The bootstrap's is empty at 0 and n successes, as if the next prompt could not turn out otherwise; this one is not.
    """
    p, z = count / n, Z_95
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Rounding must not leave the rate itself outside, as 0 of n.
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its 95 % bootstrap interval; a single value has none."""
    n = len(values)
    if n == 1:
        return {"mean": float(values[0]), "low": None, "high": None, "n": n}
    low, high = bootstrap_ratio(np.array(values, dtype=float), np.ones(n))
    return {"mean": statistics.fmean(values), "low": low, "high": high, "n": n}


def jackknife(value: float, without: Sequence[float]) -> dict[str, Any]:
    """Return a share with its 95 % interval, from its values without one of the n answers each.

    For a figure that depends on how many answers there are and on which are alike, such as distinct-n. The variance
    of the jackknife is on average not too small (B. Efron and C. Stein, Annals of Statistics 9, 1981).
    """
    n = len(without)
    if n == 1:
        return {"mean": value, "low": None, "high": None, "n": n}
    half = Z_95 * math.sqrt((n - 1) ** 2 / n * statistics.variance(without))
    return {"mean": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of sum(numerators) / sum(denominators) (B. Efron, 1979)."""
    rows = np.random.default_rng(0).integers(0, len(numerators), (RESAMPLES, len(numerators)))
    low, high = np.percentile(numerators[rows].sum(axis=1) / denominators[rows].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Compare two models on the same prompts: what was gained, what was lost, and the exact two-sided p.

    Under the null hypothesis each prompt on which they differ is as likely won as lost (Q. McNemar, 1947).
    """
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return {"gained": gained, "lost": lost, "n": len(before), "p": min(1.0, 2 * tail)}


def paired_difference(before: np.ndarray, after: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """Return how much sum(after) / sum(sizes) is above sum(before) / sum(sizes), with its 95 % bootstrap interval."""
    low, high = bootstrap_ratio(after - before, sizes)
    return {"difference": float((after - before).sum() / sizes.sum()), "low": low, "high": high}


def sign_flip(differences: Sequence[float]) -> float:
    """Return the exact two-sided p of paired differences: how many choices of their signs have as large a sum.

    Under the null hypothesis each pair could as well have come the other way round (R. A. Fisher, 1935). Exact for 16
    pairs or fewer; 2 / 2^n is the smallest p that n pairs can have.

    Raises:
        ValueError: More than 16 pairs.
    """
    if len(differences) > 16:
        raise ValueError(f"{len(differences)} pairs have too many choices of signs to be tried; give at most 16.")
    size = abs(sum(differences))
    sums = (
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    )
    return sum(flipped >= size - 1e-12 for flipped in sums) / 2 ** len(differences)
