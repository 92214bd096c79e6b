"""What the result table says, as data."""

import math
from typing import NamedTuple

from ablora_analysis import stats
from ablora_analysis.figures.robustness import Robustness


class Cell(NamedTuple):
    """One arm on one metric, in the metric's unit."""

    arm: str
    method: str
    lr: float
    score: stats.Summary
    to_best: stats.Paired | None
    p_holm: float
    reference: bool
    """The best mean of those that are ranked, to which the differences are taken."""
    best: bool
    """The reference, where a test over seeds stands behind it."""
    tied: bool
    not_ranked: str
    """Empty, or the reason: "edge" (of the learning rates), "diverged", "seeds" (fewer than the others have), "items"
    (evaluated on other items, or with other weights, than most)."""
    p_permutation: float = math.nan
    """Holm-adjusted, of sign flips; NaN where the design cannot reach alpha over the comparisons."""
    bootstrap: tuple[float, float] = (math.nan, math.nan)
    """Interval of the difference for new seeds and items; NaN below ten seeds."""


class Panel(NamedTuple):
    """One metric on one data set: the arms in the order of the plan."""

    setting: str
    dataset: str
    metric: str
    cells: tuple[Cell, ...]
    detectable: float
    """Smallest difference found with 80 % power, at 0.05 divided by the number of comparisons; infinite if unknown."""
    seeds: tuple[int, ...]
    refused: str
    """Why nothing here could be compared (the items differ), or ""."""


class Budget(NamedTuple):
    arm: str
    setting: str
    dataset: str
    rank: str
    """Directions of a module in the arm's runs, of all its experts; "" for what has no rank."""
    trainable_parameters: float
    adapter_bytes: float
    diverged_share: str
    robustness: Robustness


class ResultTable(NamedTuple):
    panels: tuple[Panel, ...]
    budgets: tuple[Budget, ...]
    notes: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def ranks_differ(self) -> bool:
        """Whether a reader must be told the ranks: under a budget of parameters each method has its own."""
        return len({(b.setting, b.rank) for b in self.budgets if b.rank}) > len(
            {b.setting for b in self.budgets if b.rank}
        )
