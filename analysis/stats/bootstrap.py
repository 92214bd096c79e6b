"""The studentised hierarchical bootstrap: new seeds and new items without a normal distribution, from ten seeds on."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ablora.spec import check
from ablora_analysis.stats.crossed import components, linearised
from ablora_analysis.stats.matched import crossed_table, differences

SEEDS = 10
"""Below this many seeds its 95 % intervals are too short where seeds dominate: they covered 0.89 with three seeds and
0.92 with five (docs/statistics.md); 0.94 to 0.95 with ten."""
CELLS = 500_000
"""How many cells of resampled tables are held at once."""


class Bootstrapped(NamedTuple):
    """A mean difference with its interval for new seeds and new items."""

    difference: float
    low: float
    high: float


def bootstrap(
    a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Bootstrapped:
    """Bootstrap-t (Efron & Tibshirani 1993, ch. 12) over seeds and items, drawn with replacement and independently.

    R - q_{1-alpha/2} se, R - q_{alpha/2} se, with q the quantiles of (R* - R) / se* over the resampled tables, and se
    the crossed model's standard error (`crossed.components`). Refused below ten seeds. Frames as `paired` reads them.
    """
    parts, _ = differences(a, b)
    check(len(parts) >= SEEDS, "seeds", len(parts), f"at least {SEEDS} for a bootstrap over seeds: with fewer its "
          "intervals are too short")  # fmt: skip
    table = crossed_table(parts)
    if table is None or table[0].shape[1] < SEEDS:
        num = 0 if table is None else table[0].shape[1]
        check(False, "items", num, f"at least {SEEDS}, the same at every seed, for a bootstrap over items")
    assert table is not None
    return of_table(*table, level, resamples, np.random.default_rng(seed))


def of_table(
    value: np.ndarray, weight: np.ndarray, level: float, resamples: int, rng: np.random.Generator
) -> Bootstrapped:
    """The same from values (seeds, items) and weights (items,)."""
    whole = components(linearised(value, weight))
    at_once = max(1, CELLS // value.size)
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    t = np.concatenate([_studentised(value, weight, float(whole.mean), size, rng) for size in sizes])
    low, high = np.quantile(t[np.isfinite(t)], [(1 - level) / 2, (1 + level) / 2])
    mean, se = float(whole.mean), float(np.sqrt(whole.variance))
    return Bootstrapped(mean, mean - float(high) * se, mean - float(low) * se)


def _studentised(
    value: np.ndarray, weight: np.ndarray, truth: float, size: int, rng: np.random.Generator
) -> np.ndarray:
    seeds, items = (rng.integers(0, n, (size, n)) for n in value.shape)
    found = components(linearised(value[seeds[:, :, None], items[:, None, :]], weight[items]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (found.mean - truth) / np.sqrt(found.variance)
