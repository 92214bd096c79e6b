"""How much of W0 lies in an update's directions, and how much the update amplifies it, per method.

||U^T W0 V||_F for the singular vectors U, V of dW, of W0 itself and of a random matrix; ||U^T dW V||_F for those of dW;
amplification is their ratio (Hu et al. 2021, Table 7; Wang et al. 2024, Table 7). A random pair of r directions each
has about ||W0||_F r / sqrt(m n), which stands beside the measured one as a check.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ablora_analysis import stats
from ablora_analysis.figures import measured, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.measured import ordered
from ablora_analysis.figures.result_table import label
from ablora_analysis.figures.style import Look

QUANTITIES = {
    "w_update": ("update", "norm_w", "‖UᵀW0V‖, ΔW"),
    "w_top": ("top", "norm_w", "‖UᵀW0V‖, W0"),
    "w_random": ("random", "norm_w", "‖UᵀW0V‖, random"),
    "expected_random": ("random", "expected_random", "‖W0‖ r/√(mn)"),
    "update": ("update", "norm_update", "‖UᵀΔWV‖, ΔW"),
    "amplification": ("update", "amplification", "amplification"),
}
"""Each column: whose singular vectors, the measure's column, the words above it."""

ALL = "all"


class Value(NamedTuple):
    """One quantity of one arm, over the modules of one kind or all; a mean over modules, then over seeds."""

    arm: str
    method: str
    lr: float
    kind: str
    quantity: str
    score: stats.Summary | None
    """None where no module has a number in some seed."""
    modules: int
    undefined: int
    """How many (module, seed) have no number and are not in the mean."""
    ranks: tuple[int, ...]


class Projection(NamedTuple):
    """One setting and data set."""

    arms: tuple[str, ...]
    values: tuple[Value, ...]

    def of(self, arm: str, quantity: str, kind: str = ALL) -> Value | None:
        return next((v for v in self.values if (v.arm, v.quantity, v.kind) == (arm, quantity, kind)), None)


def points(rows: pd.DataFrame, choices: Sequence[Choice]) -> Projection:
    """Every quantity of every arm that was measured, over all modules and for each kind."""
    shown = [choice for choice in choices if choice.arm in set(rows["arm"])]
    kinds = [(ALL, rows), *((kind, rows[rows["kind"] == kind]) for kind in ordered(rows["kind"]))]
    values = []
    for choice in shown:
        for kind, own in kinds:
            of_arm = own[own["arm"] == choice.arm]
            values += [_value(choice, kind, name, of_arm) for name in QUANTITIES if len(of_arm)]
    return Projection(tuple(choice.arm for choice in shown), tuple(values))


def _value(choice: Choice, kind: str, quantity: str, rows: pd.DataFrame) -> Value:
    basis, column, _ = QUANTITIES[quantity]
    own = rows[rows["basis"] == basis]
    by_seed = own.groupby("seed")[column].mean()
    score = stats.summary(by_seed) if len(by_seed) and by_seed.notna().all() else None
    ranks = tuple(sorted({int(rank) for rank in own["rank"].dropna()}))
    return Value(choice.arm, choice.method, choice.lr, kind, quantity, score, own["module"].nunique(),
                 int(own[column].isna().sum()), ranks)  # fmt: skip


def number(value: Value | None) -> str:
    """Three digits of the mean, and half its interval's width, or the range of two seeds; † where modules are
    missing from the mean."""
    if value is None or value.score is None:
        return "–"
    score, mark = value.score, "†" if value.undefined else ""
    if score.basis == "range":
        ends = [_digits(score.low), _digits(score.high)]
        return f"{_digits(score.mean)}{mark}" + (f" [{', '.join(ends)}]" if ends[0] != ends[1] else "")
    half = (score.high - score.low) / 2 if score.basis == "seeds" else math.nan
    return f"{_digits(score.mean)}{mark}" + (f" ±{_digits(half, 2)}" if half == half and half > 0 else "")


def _digits(value: float, digits: int = 3) -> str:
    """Significant digits, in plain notation from 0.0001 to 100 000."""
    if not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}" if value else "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


class Dots(NamedTuple):
    """A panel of the figure: quantities side by side on one axis, the first in the arm's own colour and in numbers."""

    quantities: tuple[str, ...]
    title: str


PANELS = (
    Dots(("w_update", "w_top", "w_random", "expected_random"), "‖UᵀW0V‖ (Frobenius)"),
    Dots(("update",), "‖UᵀΔWV‖ (Frobenius)"),
    Dots(("amplification",), "amplification ‖UᵀΔWV‖ / ‖UᵀW0V‖"),
)

REFERENCES = {
    "w_top": ("of W0", "|", "black", 5.0),
    "w_random": ("random", "x", "#777777", 4.0),
    "expected_random": ("expected", "|", "#777777", 8.0),
}
"""How what is not the arm's own is drawn."""


def draw(ax: Axes, projection: Projection, dots: Dots, looks: Mapping[str, Look]) -> None:
    """A row per arm: its mean and interval over seeds with the number beside it, and what it is compared with."""
    for y, arm in enumerate(projection.arms):
        for quantity in reversed(dots.quantities):
            value = projection.of(arm, quantity)
            if value is None or value.score is None:
                continue
            if quantity in REFERENCES:
                _, marker, colour, size = REFERENCES[quantity]
                ax.plot([value.score.mean], [y], linestyle="none", marker=marker, color=colour, markersize=size)
                continue
            look, score = looks[arm], value.score
            if score.low == score.low:
                ax.plot([score.low, score.high], [y, y], color=look.colour, linewidth=1.2)
            ax.plot([score.mean], [y], linestyle="none", marker=look.marker, color=look.colour,
                    markersize=6.5 if look.marker == "*" else 4.5)  # fmt: skip
        ax.text(1.02, y, number(projection.of(arm, dots.quantities[0])), transform=ax.get_yaxis_transform(),
                va="center", ha="left", fontsize=style.SMALL_PT)  # fmt: skip
    ax.set_yticks(range(len(projection.arms)), [label(arm) for arm in projection.arms])
    ax.set_ylim(len(projection.arms) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", linewidth=0.3, color="#CCCCCC")
    ax.set_axisbelow(True)
    _scale(ax, [v.score.mean for v in projection.values if v.kind == ALL and v.quantity in dots.quantities and v.score])
    ax.set_xlabel(dots.title)


def _scale(ax: Axes, means: Sequence[float]) -> None:
    """Logarithmic where the means span more than a factor of ten, else from zero."""
    if means and min(means) > 0 and max(means) > 10 * min(means):
        ax.set_xscale("log")
        decades = math.log10(max(means) / min(means))
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.08)
    else:
        ax.set_xlim(left=0)


def legend() -> dict[str, Line2D]:
    """What the marks that are no method's stand for."""
    return {words: Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=size)
            for words, marker, colour, size in REFERENCES.values()}  # fmt: skip


def notes(projection: Projection, rows: pd.DataFrame, comparison: measured.Comparison) -> list[str]:
    """What was averaged, what the intervals speak of, and what is missing."""
    own = [value for value in projection.values if value.kind == ALL]
    kept = {value.score.basis for value in own if value.score}
    modules, ranks = measured.span([v.modules for v in own]), measured.span([r for v in own for r in v.ranks])
    out = [
        f"Top r = {ranks} singular vectors of each side. Mean over all {modules} modules, also of each module's "
        "amplification; by kind in the CSV. Random: U and V of a random matrix; expected: ‖W0‖ r/√(mn)."
    ]
    out += [words for basis, words in _BASES.items() if basis in kept]
    if any(value.undefined for value in own):
        out.append("† mean of the modules that have a number.")
    return [*out, *measured.notes(rows[rows["basis"] == "update"], "norm_w", comparison)]


_BASES = {
    "seeds": "±: 95 % t over seeds.",
    "range": "[]: range of two seeds.",
    "none": "One seed: no interval.",
}
