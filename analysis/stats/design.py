"""What a number of seeds can show, before or after a run of theirs exists."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from ablora.spec import check
from ablora_analysis.stats.intervals import critical

ALPHA, POWER = 0.05, 0.8


class DesignPower(NamedTuple):
    """What a comparison of one method with each of some others can show."""

    seeds: int
    comparisons: int
    smallest_p: float
    """Of a sign-flip permutation test."""
    detectable_sd: float
    """The smallest difference found with 80 % power, in standard deviations of the per-seed differences; Holm's first
    and hardest step, alpha / comparisons. Infinite below three seeds, which no test is made of."""
    permutation: bool
    """Whether a permutation test could reach alpha / comparisons."""


def design_power(seeds: int, comparisons: int, alpha: float = ALPHA, power: float = POWER) -> DesignPower:
    """From the numbers of seeds and of comparisons alone."""
    check(seeds >= 1, "seeds", seeds, "an integer of at least 1")
    check(comparisons >= 1, "comparisons", comparisons, "an integer of at least 1")
    least, level = smallest_p(seeds), alpha / comparisons
    detectable = minimum_detectable_difference(1.0, seeds, level, power) if seeds >= 3 else math.inf
    return DesignPower(seeds, comparisons, least, detectable, least < level)


def minimum_detectable_difference(sd: float, seeds: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The mean difference that a two-sided paired t test over `seeds` seeds finds with probability `power`.

    Solves P(|T| > t_{1-alpha/2, n-1}) = power for T noncentral t with df n - 1 and noncentrality delta sqrt(n) / sd
    (Cohen 1988, ch. 2). `sd` is of the per-seed differences; the answer has its unit. Infinite below two seeds.
    """
    check(0 < alpha < power < 1, "power", power, f"a probability between alpha={alpha} and 1")
    if seeds < 2 or math.isnan(sd):
        return math.inf
    return _noncentrality(seeds, alpha, power) * sd / math.sqrt(seeds)


@cache
def _noncentrality(seeds: int, alpha: float, power: float) -> float:
    df, least = seeds - 1, critical(1 - alpha, seeds - 1)

    def missing_power(ncp: float) -> float:
        return _tail(least, df, ncp) + _tail(least, df, -ncp) - power

    upper = 1.0
    while missing_power(upper) < 0:
        upper *= 2
    return float(optimize.root_scalar(missing_power, bracket=(0.0, upper), method="brentq").root)


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p of a sign-flip permutation test over `seeds` paired differences: 2^(1 - seeds)."""
    check(seeds >= 1, "seeds", seeds, "an integer of at least 1")
    return 2.0 ** (1 - seeds)


def _tail(least: float, df: int, ncp: float) -> float:
    """P(T > least) for T = (Z + ncp) / sqrt(V / df), integrated over V, chi-squared with df degrees of freedom.

    scipy 1.17's nct returns NaN far out (df 4, ncp -30); this agrees with it to 3e-6 where it does not.
    """
    quantiles = (np.arange(2000) + 0.5) / 2000
    return float(stats.norm.sf(least * np.sqrt(stats.chi2.ppf(quantiles, df) / df) - ncp).mean())
