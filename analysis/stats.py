"""Intervals and tests over seeds, paired on the same seeds and the same evaluation items.

Everything here is conditional on the evaluation items: it answers what other seeds would give on these items. One seed
can only say what other items would give to this one seed, and the result then says so (`basis`).
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ablora.spec import BadInput, check

Basis = Literal["seeds", "range", "items", "share", "none"]
"""What an interval speaks of: "seeds" a t interval over seeds; "range" least and greatest of two seeds, no interval;
"items" a t interval over the items of one seed; "share" Wilson's, not symmetric, over items of one seed that are right
or wrong; "none" one number alone."""


class Summary(NamedTuple):
    """A mean over seeds with its interval."""

    mean: float
    low: float
    high: float
    sd: float
    seeds: int
    basis: Basis


class Paired(NamedTuple):
    """A mean difference a - b with its interval; `p` is two-sided, NaN where `basis` allows no test."""

    difference: float
    low: float
    high: float
    p: float
    sd: float
    seeds: int
    items: int
    basis: Basis
    seeds_left_out: tuple[int, ...]


class Ties(NamedTuple):
    """The best, those that cannot be told from it, and the Holm-adjusted p of each against the best."""

    best: str
    tied: tuple[str, ...]
    p_holm: dict[str, float]
    against_best: dict[str, Paired]


def summary(values: Iterable[float], level: float = 0.95) -> Summary:
    """Mean and t interval: mean ± t_{n-1} sd / sqrt(n), in the values' unit (Student 1908). Values must be finite."""
    x = np.asarray(list(values), dtype=float)
    check(x.size > 0 and bool(np.isfinite(x).all()), "values", x.tolist(), "one finite number per seed")
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan
    low, high, basis = _over_seeds(x, level)
    return Summary(mean, low, high, sd, x.size, basis)


def over_items(frame: pd.DataFrame, level: float = 0.95) -> Summary:
    """One seed's mean per weight, with the interval over its items: what other items would give to this one seed.

    Items are right or wrong where `value` is a column of booleans; then the interval is Wilson's.
    """
    (own,) = _matched(frame).values()
    if frame["value"].dtype == bool:
        low, high, basis = _of_share(own.value, level)
    else:
        low, high, basis = _over_items(own.value, own.weight, level)
    return Summary(float(own.value.sum() / own.weight.sum()), low, high, math.nan, 1, basis)


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95) -> Paired:
    """Paired t over the per-seed differences of a and b, df = seeds - 1 (Student 1908).

    d_s = sum_i (a_si - b_si) / sum_i w_i over the items i of seed s;  mean(d) ± t_{n-1} sd(d) / sqrt(n).
    The frames have the columns `seed`, `item`, `value` and, where a metric is a ratio of sums (loss per answer token),
    `weight`; without it every item weighs 1. One seed: the linearised ratio's interval over items (Cochran 1977, §6.4).
    Seeds that only one of the two has are left out and named; items that differ are refused.
    """
    left, right = _matched(a), _matched(b)
    seeds = [seed for seed in left if seed in right]
    check(bool(seeds), "seeds", (list(left), list(right)), "at least one seed that both methods have")
    parts = [_differences(left[seed], right[seed], seed) for seed in seeds]
    per_seed = np.array([value.sum() / weight.sum() for value, weight in parts])
    out = tuple(sorted(set(left) ^ set(right)))
    num_items, sd = len(parts[0][0]), float(per_seed.std(ddof=1)) if len(seeds) > 1 else math.nan
    if len(seeds) == 1:
        low, high, basis = _over_items(*parts[0], level)
    else:
        low, high, basis = _over_seeds(per_seed, level)
    p = _p_value(per_seed) if basis == "seeds" else math.nan
    return Paired(float(per_seed.mean()), low, high, p, sd, len(seeds), num_items, basis, out)


def tied_with_best(scores: Mapping[str, pd.DataFrame], lower_is_better: bool, alpha: float = 0.05) -> Ties:
    """Which are tied with the best: two-sided paired tests of each against the best, adjusted by Holm (1979).

    p_(j) is adjusted to max_{i<=j} min(1, (m - i + 1) p_(i)); tied: adjusted p > alpha. Never by overlap of intervals.
    The best is the best mean of the same data, which makes the family-wise error approximate; Hsu's (1984) multiple
    comparisons with the best would make it exact. One that has no test (fewer than three seeds) is not called tied.
    """
    means = {name: _mean(frame) for name, frame in scores.items()}
    best = (min if lower_is_better else max)(sorted(means), key=lambda name: means[name])
    others = [name for name in scores if name != best]
    against = {name: paired(scores[name], scores[best]) for name in others}
    p_holm = holm({name: result.p for name, result in against.items()})
    tied = tuple(name for name in others if p_holm[name] > alpha)  # NaN > alpha is false: untested is not tied
    return Ties(best, tied, p_holm, against)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Step-down adjusted p-values (Holm 1979). NaN stays NaN and counts as no comparison."""
    tested = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, running = {name: math.nan for name in p}, 0.0
    for index, (value, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - index) * value))
        adjusted[name] = running
    return adjusted


def minimum_detectable_difference(sd: float, seeds: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The mean difference that a two-sided paired t test over `seeds` seeds finds with probability `power`.

    Solves P(|T| > t_{1-alpha/2, n-1}) = power for T noncentral t with df n - 1 and noncentrality delta sqrt(n) / sd
    (Cohen 1988, ch. 2). `sd` is of the per-seed differences; the answer has its unit. Infinite below two seeds.
    """
    check(0 < alpha < power < 1, "power", power, f"a probability between alpha={alpha} and 1")
    if seeds < 2 or math.isnan(sd):
        return math.inf
    df, critical = seeds - 1, _critical(1 - alpha, seeds - 1)

    def missing_power(ncp: float) -> float:
        return _tail(critical, df, ncp) + _tail(critical, df, -ncp) - power

    upper = 1.0
    while missing_power(upper) < 0:
        upper *= 2
    root = optimize.root_scalar(missing_power, bracket=(0.0, upper), method="brentq").root
    return float(root) * sd / math.sqrt(seeds)


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p of a sign-flip permutation test over `seeds` paired differences: 2^(1 - seeds)."""
    check(seeds >= 1, "seeds", seeds, "an integer of at least 1")
    return 2.0 ** (1 - seeds)


def _tail(critical: float, df: int, ncp: float) -> float:
    """P(T > critical) for T = (Z + ncp) / sqrt(V / df), integrated over V, chi-squared with df degrees of freedom.

    scipy 1.17's nct returns NaN far out (df 4, ncp -30); this agrees with it to 3e-6 where it does not.
    """
    quantiles = (np.arange(2000) + 0.5) / 2000
    return float(stats.norm.sf(critical * np.sqrt(stats.chi2.ppf(quantiles, df) / df) - ncp).mean())


@cache
def _critical(level: float, df: int) -> float:
    return float(stats.t.ppf((1 + level) / 2, df))


def _over_seeds(x: np.ndarray, level: float) -> tuple[float, float, Basis]:
    if x.size == 1:
        return math.nan, math.nan, "none"
    if x.size == 2:
        return float(x.min()), float(x.max()), "range"
    half = _critical(level, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
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


def _over_items(difference: np.ndarray, weight: np.ndarray, level: float) -> tuple[float, float, Basis]:
    """A t interval; none where all items agree, which says that they cannot tell the spread and not that it is zero."""
    n, ratio = difference.size, difference.sum() / weight.sum()
    if n < 3 or np.allclose(difference, ratio * weight, rtol=1e-9, atol=0.0):
        return math.nan, math.nan, "none"
    residual = (difference - ratio * weight) / weight.mean()
    half = _critical(level, n - 1) * float(residual.std(ddof=1)) / math.sqrt(n)
    return float(ratio) - half, float(ratio) + half, "items"


def _p_value(x: np.ndarray) -> float:
    """Two-sided p of a zero mean; without any spread 1 for zero differences and 0 for equal ones that are not zero."""
    spread = float(x.std(ddof=1)) / math.sqrt(x.size)
    if spread == 0.0:
        return 1.0 if float(x.mean()) == 0.0 else 0.0
    return float(2 * stats.t.sf(abs(float(x.mean())) / spread, x.size - 1))


class _Items(NamedTuple):
    """One seed's items in order, with their values and weights."""

    item: np.ndarray
    value: np.ndarray
    weight: np.ndarray


def _matched(frame: pd.DataFrame) -> dict[int, _Items]:
    """Each seed's items. Arrays, not groups: 40 times as fast on a thousand small comparisons."""
    seed, item = frame["seed"].to_numpy(), frame["item"].to_numpy(dtype=object)
    value = frame["value"].to_numpy(dtype=float)
    weight = frame["weight"].to_numpy(dtype=float) if "weight" in frame else np.ones(len(frame))
    check(bool(np.isfinite(value).all()), "value", math.nan, "finite for every item")
    out = {}
    for one in np.unique(seed):
        rows = np.flatnonzero(seed == one)
        rows = rows[np.argsort(item[rows], kind="stable")]
        own = _Items(item[rows], value[rows], weight[rows])
        repeated = own.item[1:][own.item[1:] == own.item[:-1]]
        check(repeated.size == 0, "item", list(repeated[:1]), f"once for seed {one}")
        out[int(one)] = own
    return out


def _differences(a: _Items, b: _Items, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if not np.array_equal(a.item, b.item):
        differing = sorted(set(a.item) ^ set(b.item))
        raise BadInput("items", f"{len(differing)} differ", f"the same items for both methods at seed {seed}, "
                       f"such as {differing[0]!r}, which one of them lacks")  # fmt: skip
    same = bool(np.array_equal(a.weight, b.weight))
    check(same, "weight", "differs", f"the same weight (answer tokens) of each item for both methods at seed {seed}")
    return a.value - b.value, a.weight


def _mean(frame: pd.DataFrame) -> float:
    """Mean over seeds of each seed's sum of values per weight."""
    return float(np.mean([own.value.sum() / own.weight.sum() for own in _matched(frame).values()]))
