"""Which methods cannot be told from the best."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from ablora_analysis.stats.design import ALPHA, smallest_p
from ablora_analysis.stats.matched import mean
from ablora_analysis.stats.paired import Paired, paired, per_seed
from ablora_analysis.stats.permutation import sign_flip_p


class Ties(NamedTuple):
    """The best, those that cannot be told from it, and the Holm-adjusted p of each against the best."""

    best: str
    tied: tuple[str, ...]
    p_holm: dict[str, float]
    against_best: dict[str, Paired]
    p_permutation: dict[str, float]
    """Holm-adjusted p of the sign-flip tests, which assume no normal distribution; NaN for all where the design's
    smallest p is not below alpha over the number of comparisons."""


def tied_with_best(scores: Mapping[str, pd.DataFrame], lower_is_better: bool, alpha: float = ALPHA) -> Ties:
    """Which are tied with the best: two-sided paired tests of each against the best, adjusted by Holm (1979).

    p_(j) is adjusted to max_{i<=j} min(1, (m - i + 1) p_(i)); tied: adjusted p > alpha. Never by overlap of intervals.
    One that has no test (fewer than three seeds) is not called tied.

    The best is the best mean of the same data, which Holm does not account for. Simulated with equal methods at 0.05:
    some method is called worse in 0.05 of studies of 2, 0.07-0.08 of 4, 0.08-0.11 of 8; the truly best one is lost in
    less than 0.03. Hsu's (1984) comparisons with the best keep the best in 0.95, but call some of 4 equal
    methods worse in 0.16-0.18: they bound the one error and leave the other free, so Holm stays.
    """
    means = {name: mean(frame) for name, frame in scores.items()}
    best = (min if lower_is_better else max)(sorted(means), key=lambda name: means[name])
    others = [name for name in scores if name != best]
    against = {name: paired(scores[name], scores[best]) for name in others}
    p_holm = holm({name: result.p for name, result in against.items()})
    tied = tuple(name for name in others if p_holm[name] > alpha)  # NaN > alpha is false: untested is not tied
    flips = {name: _permutation(scores[name], scores[best], alpha / len(others)) for name in others}
    return Ties(best, tied, p_holm, against, holm(flips))


def _permutation(a: pd.DataFrame, b: pd.DataFrame, level: float) -> float:
    d = np.array(list(per_seed(a, b).values()))
    return sign_flip_p(d) if smallest_p(d.size) < level else math.nan


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Step-down adjusted p-values (Holm 1979). NaN stays NaN and counts as no comparison."""
    tested = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, running = {name: math.nan for name in p}, 0.0
    for index, (value, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - index) * value))
        adjusted[name] = running
    return adjusted
