"""Which arms lie on the front of two measures that are both better low, and which are shown to lie behind it.

That an arm lies behind the front says little where seeds differ: it is called dominated only where another arm is
better in both measures by a paired t test over seeds (the greater of the two p: intersection-union, Berger 1982),
Holm-adjusted over all such pairs of the panel. Pairs are chosen by the means that are tested, which makes the
family-wise error approximate.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ablora_analysis import stats
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.result_table import Cell

ALPHA = 0.05


def front_of(means: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other equals or betters in both numbers and betters in one, by ascending first number."""

    def beaten(own: tuple[float, float]) -> bool:
        return any(x <= own[0] and y <= own[1] and (x, y) != own for x, y in means.values())

    return sorted((name for name, own in means.items() if not beaten(own)), key=lambda name: (*means[name], name))


def dominated(
    choices: Sequence[Choice], cells: Mapping[str, tuple[Cell, Cell]], values: pd.DataFrame,
    items: Mapping[str, pd.DataFrame],
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """By arm, the arms that dominate it. `cells` has the arms' two measures, `values` the runs' by id with a column
    per measure, `items` what the result table pairs on."""
    by_arm = {c.arm: c for c in choices}
    pairs = [
        (a, b) for a in by_arm for b in by_arm
        if a != b and all(better.score.mean < worse.score.mean for better, worse in zip(cells[a], cells[b]))
    ]  # fmt: skip
    p = {f"{a}\n{b}": _p_of_both(by_arm[a], by_arm[b], values, items) for a, b in pairs}
    adjusted = stats.holm(p)
    return {arm: tuple(a for a, b in pairs if b == arm and adjusted[f"{a}\n{b}"] <= ALPHA) for arm in by_arm}


def _p_of_both(a: Choice, b: Choice, values: pd.DataFrame, items: Mapping[str, pd.DataFrame]) -> float:
    p = [_p(a, b, metric, values, items) for metric in map(str, values.columns)]
    return math.nan if any(map(math.isnan, p)) else max(p)


def _p(a: Choice, b: Choice, metric: str, values: pd.DataFrame, items: Mapping[str, pd.DataFrame]) -> float:
    """Two-sided, NaN below three seeds. On items where all runs have them, else on the runs' own values."""
    left, right = (_scores(choice, metric, values, items) for choice in (a, b))
    try:
        return stats.paired(left, right).p
    except ValueError:  # no seed in common, or other items: the table says which
        return math.nan


def _scores(choice: Choice, metric: str, values: pd.DataFrame, items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    seeds = dict(zip(choice.ids, choice.seeds))
    if metric in items:
        own = items[metric][items[metric]["id"].isin(choice.ids)]
        return own.assign(seed=own["id"].map(seeds))
    finite = [run for run in choice.ids if math.isfinite(values.loc[run, metric])]  # type: ignore[arg-type]
    return pd.DataFrame({"seed": [seeds[r] for r in finite], "item": "run", "value": values.loc[finite, metric]})
