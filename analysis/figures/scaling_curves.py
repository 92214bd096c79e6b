"""What a study's objective makes of s: trials to a curve over log s, its best, and the price of each closed form.

A panel is a method in one setting (rank, data set, model, and whatever else was swept). Its trials differ in s, in the
learning rate, and in what else a search varied: a surface over all of these is fitted (`stats.surface`), and the curve
is its least over the settings of the others that were tried, for each drawn surface by itself. So the curve, the best s
and the loss at a formula are three views of the same draws.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ablora_analysis.figures import style
from ablora_analysis.figures.arms import CONFIRM, DIVERGED, USED
from ablora_analysis.stats.surface import CHOSEN, surface
from ablora_analysis.table import LABEL, PRUNED, names

VALUES, TRIALS = 4, 6
"""A panel has at least so many values of s, in so many finished trials: of fewer there is no curve to speak of."""
DRAWS = 20 * CHOSEN
GRID = 25
SETTINGS = 16
"""Of the other keys' tried settings, so many at most are looked at: each costs a point for every s."""
EDGE = 0.2
"""Share of the draws whose best s is an end of what was tried, from which on the best may lie beyond."""
_LEVEL = (0.025, 0.5, 0.975)


class Span(NamedTuple):
    """A median with the interval that holds 95 % of the draws."""

    low: float
    middle: float
    high: float


class Theory(NamedTuple):
    """One closed form on the panel's modules."""

    name: str
    s: float
    octaves: Span
    """log2 of its s over the best s: how far, and on which side."""
    loss: Span
    """Of the metric, against the best s, each at its best rate; NaN where its s is outside what was tried."""


class Curve(NamedTuple):
    """One panel; `s` to `ids` run over the finished trials, `grid` to `high` over the curve."""

    setting: str
    dataset: str
    method: str
    metric: str
    s: tuple[float, ...]
    values: tuple[float, ...]
    ids: tuple[str, ...]
    diverged: tuple[float, ...]
    """s of the trials that diverged: in the fit each counts as the worst finished one."""
    grid: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    best: Span
    """The s at which the drawn curves are least."""
    edge: bool
    """The best s may lie beyond what was tried."""
    tuned: tuple[str, ...]
    """The other keys that varied: the curve is at their best."""
    theories: tuple[Theory, ...]
    spread: float
    """The greatest s of a module over the least, within a run."""

    @property
    def best_trial(self) -> int:
        sign = 1 if style.lower_is_better(self.metric) else -1
        return min(range(len(self.s)), key=lambda i: sign * self.values[i])


class Panel(NamedTuple):
    """The runs of one curve to be; columns id, s, spread, the metric, and what varied beside s."""

    setting: str
    dataset: str
    method: str
    rows: pd.DataFrame
    others: tuple[str, ...]


def panels(prepared: pd.DataFrame, searched: Sequence[str] = ()) -> Iterator[Panel]:
    """The study's tuning runs by what is held equal. `searched`: keys that a search varied beside the rate; numbers
    among them are no settings but further coordinates."""
    runs = prepared[prepared["fate"].isin([USED, DIVERGED]) & ~prepared["why"].isin([CONFIRM, PRUNED])]
    runs = runs.drop_duplicates("id")
    labels = [c.removeprefix(LABEL) for c in names(runs) if c.startswith(LABEL) and runs[c].nunique() > 1]
    numbers = [key for key in labels if key in searched and key not in ("rank", "seed") and _numeric(runs[LABEL + key])]
    settings = [key for key in labels if key not in (*numbers, "method", "seed", "train.lr", "dataset")
                and not of_scaling(key)]  # fmt: skip
    others = [key for key in numbers if key != "train.lr" and not of_scaling(key)]
    runs = runs.assign(held=[_held(row, settings) for row in runs.to_dict("records")])
    for (held, dataset, method), rows in runs.groupby(["held", "dataset", "method"], sort=False):
        columns = {"train.lr": rows["lr"], **{key: rows[LABEL + key].astype(float) for key in others}}
        varied = {key: column for key, column in columns.items() if column.nunique() > 1}
        yield Panel(str(held), str(dataset), str(method), rows.assign(**varied), tuple(varied))


def of_scaling(key: str) -> bool:
    """Whether a swept key is a way to say s: a scaling, or a field of one."""
    return key.replace("/", ".").startswith("method.scaling")


def _numeric(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column.dropna(), errors="coerce").notna().all())


def _held(row: Mapping, keys: Sequence[str]) -> str:
    pairs = [(key.replace("/", ".").rpartition(".")[2], row.get(LABEL + key)) for key in keys]
    return ", ".join(f"{key}={value}" for key, value in pairs if not pd.isna(value))


def varies(panel: Panel, metric: str) -> bool:
    """Whether there are trials enough, at values of s enough, for a curve."""
    done = panel.rows[(panel.rows["fate"] == USED) & panel.rows[metric].notna() & panel.rows["s"].notna()]
    return len(done) >= TRIALS and len(set(np.round(np.log2(done["s"].astype(float)), 6))) >= VALUES


def curve(panel: Panel, formulas: Mapping[str, float], metric: str, seed: int = 0) -> Curve:
    """Fit one panel. `formulas`: the s of each closed form there."""
    rows = panel.rows[panel.rows["s"].notna()]
    bad = (rows["fate"] == DIVERGED) | rows[metric].isna()
    done, lost = rows[~bad], rows[bad]
    sign, logarithmic = 1 if style.lower_is_better(metric) else -1, bool(done[metric].min() > 0)
    # A loss is fitted as its logarithm: far from its best rate it is several times as large, and as rough.
    logarithmic &= sign > 0
    values = sign * done[metric].to_numpy(float)
    values = np.concatenate([values, np.full(len(lost), values.max())])
    tried = pd.concat([done, lost])
    scales = [_Axis.of(tried[key].to_numpy(float)) for key in ("s", *panel.others)]
    x = np.column_stack([axis.place(tried[key].to_numpy(float)) for axis, key in zip(scales, ("s", *panel.others))])
    fitted = surface(x, np.log(values) if logarithmic else values)
    ends = float(done["s"].min()), float(done["s"].max())
    inside = {name: s for name, s in formulas.items() if ends[0] <= s <= ends[1]}
    grid = np.geomspace(*ends, GRID)
    ask = scales[0].place(np.array([*grid, *inside.values()]))
    settings = _settings(x[:, 1:])
    at = np.column_stack([np.repeat(ask, len(settings)), np.tile(settings, (len(ask), 1))])
    draws = fitted.draws(at, DRAWS, seed).reshape(DRAWS, len(ask), len(settings)).min(axis=2)
    draws = np.exp(draws) if logarithmic else draws
    return _summed_up(panel, metric, done, lost, grid, draws, sign, formulas, list(inside))


def _summed_up(
    panel: Panel, metric: str, done: pd.DataFrame, lost: pd.DataFrame, grid: np.ndarray, draws: np.ndarray, sign: int,
    formulas: Mapping[str, float], inside: Sequence[str],
) -> Curve:  # fmt: skip
    """The draws (smaller is better) as a curve: the first GRID columns over the grid, then a column per formula."""
    over_grid, at_formulas = draws[:, : len(grid)], draws[:, len(grid) :]
    least = over_grid.argmin(axis=1)
    edge = float(np.mean((least == 0) | (least == len(grid) - 1)))
    low, middle, high = (float(value) for value in np.quantile(np.log2(grid)[least], _LEVEL))
    half = 0.5 * math.log2(grid[1] / grid[0])  # what the grid cannot tell apart
    best = Span(low - half, middle, high + half)
    losses = {name: _span(column - draws.min(axis=1)) for name, column in zip(inside, at_formulas.T)}
    nothing = Span(math.nan, math.nan, math.nan)
    theories = tuple(
        Theory(name, s, Span(*(math.log2(s) - end for end in reversed(best))), losses.get(name, nothing))
        for name, s in formulas.items()
    )
    bounds = np.sort(sign * np.quantile(over_grid, _LEVEL, axis=0), axis=0)
    return Curve(
        panel.setting, panel.dataset, panel.method, metric, _floats(done["s"]), _floats(done[metric]),
        tuple(str(run) for run in [*done["id"], *lost["id"]]), _floats(lost["s"]), _floats(grid), _floats(bounds[1]),
        _floats(bounds[0]), _floats(bounds[2]), Span(*(2.0**end for end in best)), edge > EDGE, panel.others, theories,
        float(done["spread"].max()),
    )  # fmt: skip


def _span(draws: np.ndarray) -> Span:
    return Span(*(float(value) for value in np.quantile(draws, _LEVEL)))


def _floats(values: object) -> tuple[float, ...]:
    return tuple(float(value) for value in np.asarray(values, dtype=float))


class _Axis(NamedTuple):
    """A coordinate's way to [0, 1]."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: np.ndarray) -> "_Axis":
        log = bool(values.min() > 0)
        own = np.log(values) if log else values
        return cls(float(own.min()), float(own.max()), log)

    def place(self, values: np.ndarray) -> np.ndarray:
        own = np.log(values) if self.log else values
        return (own - self.low) / (self.high - self.low)


def _settings(tried: np.ndarray) -> np.ndarray:
    """What was tried of the other coordinates; of more than SETTINGS, as many evenly from their order."""
    distinct = np.unique(tried, axis=0)
    if len(distinct) <= SETTINGS:
        return distinct
    return distinct[np.linspace(0, len(distinct) - 1, SETTINGS).round().astype(int)]
