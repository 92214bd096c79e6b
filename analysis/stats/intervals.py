"""Intervals of one mean: over seeds, or over the items of a single seed."""

import math
from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ablora.spec import check
from ablora_analysis.stats.matched import Items, matched, ratio

Basis = Literal["seeds", "range", "items", "share", "none"]
"""What an interval speaks of: "seeds" a t interval over seeds; "range" least and greatest of two seeds, no interval;
"items" a t interval over the items of one seed; "share" Wilson's, not symmetric, over items of one seed that are right
or wrong; "none" one number alone, or seeds or items that all agree."""


class Summary(NamedTuple):
    """A mean over seeds with its interval."""

    mean: float
    low: float
    high: float
    sd: float
    seeds: int
    basis: Basis


def summary(values: Iterable[float], level: float = 0.95) -> Summary:
    """Mean and t interval: mean ± t_{n-1} sd / sqrt(n), in the values' unit (Student 1908). Values must be finite.

    Three seeds or more that all agree (none of a few items right) cannot tell the spread: no interval, and not one of
    no width.
    """
    x = np.asarray(list(values), dtype=float)
    check(x.size > 0 and bool(np.isfinite(x).all()), "values", x.tolist(), "one finite number per seed")
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan
    if x.size > 2 and np.allclose(x, x[0], rtol=1e-12, atol=0.0):
        return Summary(mean, math.nan, math.nan, sd, x.size, "none")
    low, high, basis = of_seeds(x, level)
    return Summary(mean, low, high, sd, x.size, basis)


def over_items(frame: pd.DataFrame, level: float = 0.95) -> Summary:
    """One seed's mean per weight, with the interval over its items: what other items would give to this one seed.

    Items are right or wrong where `value` is a column of booleans; then the interval is Wilson's.
    """
    (own,) = matched(frame).values()
    if frame["value"].dtype == bool:
        low, high, basis = _of_share(own.value, level)
    else:
        low, high, basis = of_items(own, level)
    return Summary(ratio(own), low, high, math.nan, 1, basis)


@cache
def critical(level: float, df: int) -> float:
    """The two-sided critical value of Student's t."""
    return float(stats.t.ppf((1 + level) / 2, df))


def half_width(x: np.ndarray, level: float) -> np.ndarray:
    """t_{n-1} sd / sqrt(n) along the last axis."""
    n = x.shape[-1]
    return critical(level, n - 1) * x.std(-1, ddof=1) / math.sqrt(n)


def of_seeds(x: np.ndarray, level: float) -> tuple[float, float, Basis]:
    """From one number per seed, shape (seeds,)."""
    if x.size == 1:
        return math.nan, math.nan, "none"
    if x.size == 2:
        return float(x.min()), float(x.max()), "range"
    half = float(half_width(x, level))
    return float(x.mean()) - half, float(x.mean()) + half, "seeds"


def _of_share(right: np.ndarray, level: float) -> tuple[float, float, Basis]:
    """The score interval of Wilson (1927): all p with |k/n - p| <= z sqrt(p (1 - p) / n), for k right items of n.

    None of 32 right is [0, 0.107], where a t interval has no width and claims certainty.
    """
    n, k, z = right.size, float(right.sum()), float(stats.norm.ppf((1 + level) / 2))
    centre = (k + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    # The ends are 0 and 1 there; a rounding would put the share outside its own interval.
    return 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half, "share"


def of_items(own: Items, level: float) -> tuple[float, float, Basis]:
    """A t interval of the linearised ratio (Cochran 1977, §6.4); none where all items agree, which says that they
    cannot tell the spread and not that it is zero."""
    n, mean = own.value.size, ratio(own)
    if n < 3 or np.allclose(own.value, mean * own.weight, rtol=1e-9, atol=0.0):
        return math.nan, math.nan, "none"
    residual = (own.value - mean * own.weight) / own.weight.mean()
    half = float(half_width(residual, level))
    return mean - half, mean + half, "items"
