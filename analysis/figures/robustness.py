"""How much a method minds its learning rate."""

import math
from typing import NamedTuple

import pandas as pd

from ablora_analysis.figures import arms, style
from ablora_analysis.figures.arms import DIVERGED, USED, Choice

POINT = 0.01
"""One point: of a share a percentage point; of a loss 0.01 nats, one percent of the perplexity."""


class Robustness(NamedTuple):
    """The learning rates next to the best one whose mean is within a point of its mean, least and greatest. Of rates
    that were tried: the range is at least that. NaN where fewer than two were."""

    metric: str
    """The one that chooses rates."""
    low: float
    high: float

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)


def of(prepared: pd.DataFrame, choice: Choice) -> Robustness:
    """From the seeds that were tried at the most rates: other seeds at one rate alone would compare seeds, not rates.

    A rate at which one of them diverged is not within a point of anything.
    """
    metric = arms.selection_metric(prepared) or ""
    found = _means(prepared, choice, metric)
    rates, means = list(found), list(found.values())
    if len(rates) < 2 or all(map(math.isnan, means)):
        return Robustness(metric, math.nan, math.nan)
    loss = [m if style.lower_is_better(metric) else -m for m in means]
    best = min((i for i in range(len(loss)) if not math.isnan(loss[i])), key=lambda i: loss[i])
    # A mean that is a point away in decimals is within it; NaN is not within anything.
    near = [value <= loss[best] + POINT + 1e-9 for value in loss]
    low, high = best, best
    while low > 0 and near[low - 1]:
        low -= 1
    while high + 1 < len(rates) and near[high + 1]:
        high += 1
    return Robustness(metric, rates[low], rates[high])


def _means(prepared: pd.DataFrame, choice: Choice, metric: str) -> dict[float, float]:
    """The mean of each rate, ascending; NaN where a seed has no number."""
    own = prepared[prepared["fate"].isin([USED, DIVERGED])]
    own = own[(own["setting"] == choice.setting) & (own["dataset"] == choice.dataset) & (own["arm"] == choice.arm)]
    if not metric or own.empty:
        return {}
    tried = own.groupby("seed")["lr"].nunique()
    own = own[own["seed"].isin(tried[tried == tried.max()].index)]
    values = own[metric].where(own["fate"] == USED)
    by_rate = values.groupby(own["lr"], sort=True)
    return {float(str(lr)): float(part.mean(skipna=False)) for lr, part in by_rate}
