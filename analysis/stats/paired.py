"""The difference of two methods, paired on seeds and items."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ablora_analysis.stats.crossed import of_parts
from ablora_analysis.stats.intervals import Basis, of_items, of_seeds
from ablora_analysis.stats.matched import differences, ratio


class Paired(NamedTuple):
    """A mean difference a - b with its interval; `p` is two-sided, NaN where `basis` allows no test."""

    difference: float
    low: float
    high: float
    p: float
    sd: float
    """Of the per-seed differences."""
    seeds: int
    items: int
    basis: Basis
    seeds_left_out: tuple[int, ...]
    new_items_low: float = math.nan
    """The interval of the same difference on other items and other seeds; NaN below three seeds."""
    new_items_high: float = math.nan


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95) -> Paired:
    """Paired t over the per-seed differences of a and b, df = seeds - 1 (Student 1908).

    d_s = sum_i (a_si - b_si) / sum_i w_i over the items i of seed s;  mean(d) ± t_{n-1} sd(d) / sqrt(n).
    The frames have the columns `seed`, `item`, `value` and, where a metric is a ratio of sums (loss per answer token),
    `weight`; without it every item weighs 1. One seed: the linearised ratio's interval over items (Cochran 1977, §6.4).
    Seeds that only one of the two has are left out and named; items that differ are refused.
    """
    parts, out = differences(a, b)
    first = next(iter(parts.values()))
    d = np.array([ratio(part) for part in parts.values()])
    low, high, basis = of_seeds(d, level) if d.size > 1 else of_items(first, level)
    sd, p = float(d.std(ddof=1)) if d.size > 1 else math.nan, float(p_value(d)) if basis == "seeds" else math.nan
    other = of_parts(parts, level)
    return Paired(float(d.mean()), low, high, p, sd, d.size, first.item.size, basis, out, other.low, other.high)


def per_seed(a: pd.DataFrame, b: pd.DataFrame) -> dict[int, float]:
    """The difference a - b of each seed that both have."""
    parts, _ = differences(a, b)
    return {seed: ratio(part) for seed, part in parts.items()}


def p_value(x: np.ndarray) -> np.ndarray:
    """Two-sided p of a zero mean along the last axis; without any spread 1 for zero differences and 0 for equal ones
    that are not zero."""
    n, mean = x.shape[-1], np.abs(x.mean(-1))
    spread = x.std(-1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0.0, 0.0, mean / spread)
    return 2 * stats.t.sf(t, n - 1)
