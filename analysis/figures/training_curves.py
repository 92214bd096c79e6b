"""Training and evaluation loss against the step: mean over seeds and the band from the least to the greatest seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ablora_analysis import table
from ablora_analysis.figures import arms, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.study import Study, paint_panels
from ablora_analysis.figures.style import Look

TRAIN, EVAL = "loss_nats", "answer_loss_nats"


class Curve(NamedTuple):
    """One arm at its chosen learning rate; losses in nats per answer token."""

    setting: str
    dataset: str
    arm: str
    lr: float
    metric: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int
    diverged_at: tuple[int, ...]
    """The last recorded step of each diverged run; the mean is of the seeds that did not diverge."""
    ids: tuple[str, ...]


def window_of(num_steps: int) -> int:
    """Steps of the running mean: a fortieth of the run, at least 1."""
    return max(1, num_steps // 40)


def points(choices: Sequence[Choice], records: pd.DataFrame, metric: str) -> list[Curve]:
    """One curve per choice that recorded `metric`: each seed smoothed (training only), then mean, least and greatest
    over the seeds, at the steps that all of them have. `records` is `table.curves`."""
    kind = "train" if metric == TRAIN else "eval"
    wanted = records[(records["metric"] == metric) & (records["kind"] == kind)]
    by_run = {str(run): part for run, part in wanted.groupby("id")}
    out = []
    for choice in choices:
        parts = [_seed(by_run[run], kind) for run in choice.ids if run in by_run]
        ends = tuple(int(by_run[run]["step"].max()) for run in choice.diverged if run in by_run)
        if not parts and not ends:
            continue
        seeds = pd.concat(parts, axis=1, join="inner").sort_index().dropna() if parts else pd.DataFrame()
        out.append(
            Curve(
                choice.setting, choice.dataset, choice.arm, choice.lr, metric, tuple(int(s) for s in seeds.index),
                tuple(seeds.mean(axis=1)), tuple(seeds.min(axis=1)), tuple(seeds.max(axis=1)), len(parts), ends,
                tuple(run for run in (*choice.ids, *choice.diverged) if run in by_run),
            )
        )  # fmt: skip
    return out


def _seed(records: pd.DataFrame, kind: str) -> pd.Series:
    """One run's values by step; training losses smoothed by a running mean over the steps up to each."""
    values = records.drop_duplicates("step", keep="last").set_index("step")["value"]
    if kind == "train":
        return values.rolling(window_of(len(values)), min_periods=1).mean()
    return values


def notes(curves: Sequence[Curve]) -> list[str]:
    """What the lines and bands are, for the foot."""
    seeds = sorted({curve.seeds for curve in curves})
    windows = sorted({window_of(len(curve.steps)) for curve in curves if curve.metric == TRAIN and curve.steps})
    out = []
    if windows and windows[-1] > 1:
        out.append(f"Training loss: running mean over {windows[-1]} steps.")
    if seeds and seeds[-1] > 1:
        span = " to ".join(map(str, sorted({seeds[0], seeds[-1]})))
        out.append(f"Line: mean of {span} seeds; band: least to greatest.")
    else:
        out.append("One seed.")
    num_diverged = len({run for curve in curves if curve.diverged_at for run in curve.ids[curve.seeds :]})
    if not all(all(_late(curve.steps)) for curve in curves):
        out.append("The first fifth of the run may lie above the axis.")
    return [*out, *([f"×: {num_diverged} diverged, not in the mean."] if num_diverged else [])]


def draw(ax: Axes, curves: Sequence[Curve], looks: Mapping[str, Look] | None = None) -> None:
    """Lines with bands; a cross at the top where a run diverged. Few evaluations are marked one by one."""
    looks = looks or style.looks(curve.arm for curve in curves)
    for curve in curves:
        look = looks[curve.arm]
        few = len(curve.steps) <= 12
        ax.plot(curve.steps, curve.mean, color=look.colour, marker=look.marker if few else None, markersize=3.2)
        if not few:
            every = max(1, len(curve.steps) // 5)
            ax.plot(curve.steps[every // 2 :: every], curve.mean[every // 2 :: every], linestyle="none",
                    color=look.colour, marker=look.marker, markersize=3.2)  # fmt: skip
        if curve.seeds > 1:
            ax.fill_between(curve.steps, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
        for step in curve.diverged_at:
            ax.plot([step], [0.97], transform=ax.get_xaxis_transform(), color=look.colour, marker="x", markersize=5,
                    linestyle="none", markeredgewidth=1.4)  # fmt: skip
    if limits := _limits(curves):
        ax.set_ylim(*limits)
    ax.set_xlabel("step")
    ax.set_ylabel(style.axis_title(curves[0].metric).replace(" (", "\n("))


def _limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """From the least value to the greatest after the first fifth of the run: the fall of the first steps, and a spike
    of one seed, would leave no room for the differences between methods."""
    late = [_late(curve.steps) for curve in curves if curve.steps]
    values = [np.asarray([c.low, c.mean, c.high])[:, keep] for c, keep in zip([c for c in curves if c.steps], late)]
    if not values:
        return None
    bottom = min(float(value[0].min()) for value in values)
    top = max(max(float(value[1].max()), float(np.quantile(value[2], 0.98))) for value in values)
    pad = 0.06 * (top - bottom) or 0.1
    return bottom - pad, top + 2 * pad


def _late(steps: Sequence[int]) -> list[bool]:
    """Whether a step is past the first fifth of the run; of three points or fewer, all are shown."""
    return [len(steps) <= 3 or step >= 0.2 * steps[-1] for step in steps]


def paint(study: Study) -> list[Path]:
    """A panel of training and one of evaluation losses per data set and setting."""
    ids = sorted({run for choice in study.choices for run in (*choice.ids, *choice.diverged)})
    metrics = [TRAIN, EVAL]
    records = table.curves(study.roots, ids, metrics)
    found = [curve for metric in metrics for curve in points(study.choices, records, metric)]
    if not found:
        return []
    keys = [(*key, metric) for metric in metrics for key in arms.panels(study.choices)]
    shown = {key: own for key in keys if (own := [c for c in found if (c.setting, c.dataset, c.metric) == key])}
    foot = [*notes(found), *arms.notes(study.prepared, study.choices)]
    return paint_panels(study, "training_curves", shown, draw, 1.55, foot)
