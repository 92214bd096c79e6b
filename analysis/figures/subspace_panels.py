"""Where a method's update lies in W0: its likeness to W0's top, bottom and random directions, by layer and by kind.

phi = ||U_dW^T U_W0||_F^2 / r for the left singular vectors (outputs) and likewise V for the right ones (inputs), r of
each side (Hu et al. 2021, section 7.2; in the form of Wang et al. 2024, Fig. 2). A random r of m directions has r / m.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ablora_analysis.figures import by_place, measured, sheet, style
from ablora_analysis.figures.by_place import Line, Places
from ablora_analysis.figures.measured import SIDES, Comparison
from ablora_analysis.figures.study import Study, legend
from ablora_analysis.figures.style import Look

AGAINST = ("top", "bottom", "random")
_NULL = "#BBBBBB"
_MARKS = {"layer": "shaded", "kind": "bar"}


class Panel(NamedTuple):
    """One side against one set of W0's directions."""

    against: str
    side: str
    at: Places
    lines: tuple[Line, ...]
    null: tuple[float, ...]
    """What a random subspace has at each place: the mean over modules of its expectation,"""
    null_low: tuple[float, ...]
    null_high: tuple[float, ...]
    """and of its 95 % band, which is of one module; the widest where arms differ in rank."""


def points(rows: pd.DataFrame, axis: str, arms: Sequence[str]) -> list[Panel]:
    """Six panels, left and right beside each other, over the `layer` or the `kind`; fewer where rows lack some."""
    at = by_place.places(rows, axis)
    out = []
    for against in AGAINST:
        for side in SIDES:
            own = rows[(rows["against"] == against) & (rows["side"] == side)]
            if own.empty:
                continue
            by_arm = own.groupby([axis, "arm"])[["null", "null_low", "null_high"]].mean().groupby(level=0)
            null = by_arm.agg({"null": "mean", "null_low": "min", "null_high": "max"}).reindex(list(at.values))
            spans = (tuple(map(float, null[name])) for name in ("null", "null_low", "null_high"))
            out.append(Panel(against, side, at, by_place.lines(own, at, "phi", arms), *spans))
    return out


def notes(rows: pd.DataFrame, axis: str, comparison: Comparison) -> list[str]:
    """What the panels show, for the foot."""
    rank, seeds = measured.span(rows.loc[rows["phi"].notna(), "i"]), measured.span(_seeds(rows))
    over = "the kinds of module in a layer" if axis == "layer" else "layers"
    several = "" if seeds == "1" else f" and {seeds} seeds; {_MARKS[axis]}: least to greatest seed"
    return [
        f"Similarity φ in [0, 1] of ΔW's top r singular vectors and r of W0, r = {rank}. Mean over {over}{several}.",
        "Gray: random subspaces, expectation (dashed) and 95 % band of a single module; a mean over modules varies "
        "less.",
        *measured.notes(rows, "phi", comparison),
    ]


def _seeds(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby("arm")["seed"].nunique()


def draw(ax: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    """The null's band and expectation behind, the arms' lines or marks before it; from zero."""
    x = range(len(panel.at.values))
    edges = [place + shift for place in x for shift in (-0.5, 0.5)]
    low, null, high = ([v for v in values for _ in range(2)] for values in
                       (panel.null_low, panel.null, panel.null_high))  # fmt: skip
    ax.fill_between(edges, low, high, color=_NULL, alpha=0.6, linewidth=0, zorder=0.5)
    ax.plot(edges, null, color="#555555", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0.6)
    by_place.draw(ax, panel.at, panel.lines, looks)
    ax.set_ylim(bottom=0)


def top(panels: Sequence[Panel]) -> float:
    """The upper end of an axis that panels share."""
    found = [v for p in panels for values in (p.null_high, *(line.high for line in p.lines)) for v in values if v == v]
    return min(1.02, 1.1 * max(found, default=1.0)) or 1.0


def paint(study: Study) -> list[Path]:
    """subspace_panels (by layer) and subspace_kinds (by kind of module) of each comparison that was measured."""
    frame = measured.read(study, "subspace")
    if frame is None:
        return []
    out = []
    for comparison in measured.comparisons(study):
        rows = measured.whole(frame, comparison.choices)
        if rows["phi"].notna().any():
            out += _paint(study, comparison, rows, "layer", "subspace_panels")
            out += _paint(study, comparison, rows, "kind", "subspace_kinds")
    return out


def _paint(study: Study, comparison: Comparison, rows: pd.DataFrame, axis: str, name: str) -> list[Path]:
    names = [choice.arm for choice in comparison.choices]
    panels, looks = points(rows, axis, names), style.looks(choice.arm for choice in study.choices)
    foot = notes(rows, axis, comparison)
    shown = [name for name in names if name in set(rows["arm"])]
    handles = {**legend(shown, looks), "random subspace": Patch(color=_NULL, alpha=0.6)}
    kept = [against for against in AGAINST if any(panel.against == against for panel in panels)]
    figure, axes = sheet.page([1.35] * len(kept), 2, 2 * style.COLUMN_IN, " ".join(foot), handles)
    for index, panel in enumerate(panels):
        ax, row = axes[index], kept.index(panel.against)
        draw(ax, panel, looks)
        ax.set_ylim(0, top([other for other in panels if other.against == panel.against]))
        if row < len(kept) - 1:
            ax.set_xlabel("")
        if row == 0:
            ax.set_title(f"{comparison.title}\n{SIDES[panel.side]}".strip(), loc="left")
        if panel.side == "left":
            ax.set_ylabel(f"φ with the\n{panel.against} r of W0")
    side = {**study.side, "notes": foot, "without_measures": measured.without(rows["id"], comparison)}
    return sheet.save(figure, study.folder / f"{name}{comparison.suffix}", sorted(set(rows["id"])), side)
