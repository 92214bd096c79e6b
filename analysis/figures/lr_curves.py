"""A final metric against the learning rate, per arm: seeds as dots, their mean as a line."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ablora_analysis.figures import arms, result_table, style
from ablora_analysis.figures.arms import CONFIRM, DIVERGED, USED, Choice
from ablora_analysis.figures.study import Study, paint_panels
from ablora_analysis.figures.style import Look

MANY = 12
"""Rates of a panel: more were drawn from a range by a search, each for itself. There is no line through them, which
would join trials that differ in more than the rate, and no tick for each."""
EDGE = 1.15
"""What such a panel has beyond its least and greatest rate, as a factor."""


class LrCurve(NamedTuple):
    """One arm; the tuples run over its learning rates in ascending order."""

    setting: str
    dataset: str
    arm: str
    metric: str
    lrs: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    """The finished seeds' values, in the metric's unit."""
    diverged: tuple[int, ...]
    """How many seeds diverged, or ended without a number."""
    mean: tuple[float, ...]
    """Over seeds; NaN at a rate where a seed diverged: a mean of the others would hide it."""
    chosen: float
    ids: tuple[str, ...]


def points(prepared: pd.DataFrame, choices: Sequence[Choice], metric: str) -> list[LrCurve]:
    """One curve per choice; where the study confirms with fresh seeds, these are in no curve: they have one rate."""
    runs = prepared[prepared["fate"].isin([USED, DIVERGED]) & (prepared["why"] != CONFIRM)]
    out = []
    for choice in choices:
        same = (runs["setting"] == choice.setting) & (runs["dataset"] == choice.dataset) & (runs["arm"] == choice.arm)
        own = runs[same].sort_values(["lr", "seed"])
        by_lr = [own[own["lr"] == lr] for lr in choice.lrs]
        values = tuple(tuple(v for v in part[metric] if math.isfinite(v)) for part in by_lr)
        diverged = tuple(len(part) - len(found) for part, found in zip(by_lr, values))
        mean = tuple(sum(v) / len(v) if v and not bad else math.nan for v, bad in zip(values, diverged))
        out.append(LrCurve(choice.setting, choice.dataset, choice.arm, metric, choice.lrs, values, diverged, mean,
                           choice.lr, tuple(own["id"])))  # fmt: skip
    return out


def notes(curves: Sequence[LrCurve]) -> list[str]:
    """What dots, lines and signs are, for the foot."""
    rates: dict[tuple[str, str], set[float]] = {}
    for curve in curves:
        rates.setdefault((curve.setting, curve.dataset), set()).update(curve.lrs)
    out = ["Dots: seeds; line: mean; large marker: chosen rate; shifted sideways to be told apart."]
    if any(len(own) > MANY for own in rates.values()):
        out = [f"Dots: trials or seeds; large marker: chosen rate. No line through more than {MANY} rates of a panel."]
    if bad := sum(sum(curve.diverged) for curve in curves):
        out.append(f"× at the border: diverged ({bad} in all); no mean is drawn there.")
    return out


def draw(ax: Axes, curves: Sequence[LrCurve], looks: Mapping[str, Look] | None = None) -> None:
    """Dots and mean lines over a logarithmic axis; crosses where runs diverged, at the bad end of the axis."""
    looks = looks or style.looks(curve.arm for curve in curves)
    rates = sorted({lr for curve in curves for lr in curve.lrs})
    width = min((math.log(b / a) for a, b in pairwise(rates)), default=math.log(2))
    lower = style.lower_is_better(curves[0].metric)
    for index, curve in enumerate(curves):
        look = looks[curve.arm]
        shift = math.exp(0.5 * width * (index - (len(curves) - 1) / 2) / max(len(curves), 4))
        x = [lr * shift for lr in curve.lrs]
        ax.plot(x, curve.mean, color=look.colour, marker=look.marker, markersize=3, markerfacecolor="white",
                markeredgewidth=0.8, linestyle="-" if len(rates) <= MANY else "none")  # fmt: skip
        at = curve.lrs.index(curve.chosen)
        ax.plot([x[at]], [curve.mean[at]], color=look.colour, marker=look.marker, markersize=6, linestyle="none")
        for at_x, values, bad in zip(x, curve.values, curve.diverged):
            ax.plot([at_x] * len(values), values, color=look.colour, marker="o", markersize=2, alpha=0.6,
                    linestyle="none", markeredgewidth=0)  # fmt: skip
            for k in range(bad):
                y = 0.97 - 0.05 * k if lower else 0.03 + 0.05 * k
                ax.plot([at_x], [y], transform=ax.get_xaxis_transform(), color=look.colour, marker="x", markersize=4,
                        linestyle="none", markeredgewidth=1.2, clip_on=False)  # fmt: skip
    ax.set_xscale("log")
    if len(rates) <= MANY:
        ax.xaxis.set_major_locator(FixedLocator(rates))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(rates, [f"{lr:g}" for lr in rates])
    edge = math.exp(0.5 * width) if len(rates) <= MANY else EDGE
    ax.set_xlim(rates[0] / edge, rates[-1] * edge)
    found = [v for curve in curves for values in curve.values for v in values]
    if lower and found and min(found) > 0 and max(found) > 4 * min(found):
        ax.set_yscale("log")
    if found and any(any(curve.diverged) for curve in curves):
        ax.margins(y=0.15)
    ax.set_xlabel("learning rate")
    ax.set_ylabel(style.axis_title(curves[0].metric).replace(" (", "\n("))


def paint(study: Study) -> list[Path]:
    """A panel per metric, data set and setting."""
    metrics = result_table.shown_metrics(study.prepared)
    found = [curve for metric in metrics for curve in points(study.prepared, study.choices, metric)]
    keys = [(*key, metric) for metric in metrics for key in arms.panels(study.choices)]
    shown = {key: [c for c in found if (c.setting, c.dataset, c.metric) == key] for key in keys}
    foot = [
        *notes([curve for curve in found if curve.metric == metrics[0]]),
        *arms.notes(study.prepared, study.choices),
    ]
    return paint_panels(study, "lr_curves", shown, draw, 1.75, foot)
