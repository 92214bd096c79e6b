"""What a figure is painted from: a study's runs, each method's chosen rate, and the folder where files go."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms, sheet, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.style import Look

ITEMS = {
    "answer_loss_nats": ("answer_loss", "loss_nats", "answer_tokens"),
    "exact_match": ("generation", "correct", ""),
    "forgetting_nats": ("forgetting", "forgetting_nats", "tokens"),
    "forgetting_floor_nats": ("forgetting", "floor_nats", "tokens"),
    "forgetting_kl_nats": ("forgetting", "kl_nats", "tokens"),
    "text_loss_nats": ("forgetting", "loss_nats", "tokens"),
    "base_text_loss_nats": ("forgetting", "base_loss_nats", "tokens"),
    "top1_agreement": ("forgetting", "agree", "tokens"),
}
"""The item records behind a metric: task, column, and the column that weighs an item."""


class Study(NamedTuple):
    """One study, read once for all its figures."""

    roots: Roots
    name: str
    folder: Path
    """studies/<name>/figures"""
    prepared: pd.DataFrame
    """`arms.prepare`: a row per cell."""
    choices: Sequence[Choice]
    side: Mapping[str, Any]
    """What every side file says: the study, the runs that were left out and why, the choices."""
    measures: Path
    """studies/<name>/measures, which may be absent."""


class OfPanel(Protocol):
    """What is drawn in the panel of one setting and data set, by one arm."""

    @property
    def arm(self) -> str: ...

    @property
    def ids(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=OfPanel)


def paint_panels(
    study: Study,
    name: str,
    shown: Mapping[tuple[str, ...], Sequence[T]],
    draw: Callable[[Axes, Sequence[T], Mapping[str, Look]], None],
    height_in: float,
    foot: Sequence[str],
) -> list[Path]:
    """One panel per key (setting, data set, ...), a legend of the arms, a foot; saved with the ids of what is drawn."""
    found = [one for own in shown.values() for one in own]
    looks = style.looks(choice.arm for choice in study.choices)
    figure, axes = sheet.sheet([height_in] * len(shown), " ".join(foot), legend([one.arm for one in found], looks))
    for ax, (key, own) in zip(axes, shown.items()):
        draw(ax, own, looks)
        title(ax, key, arms.panels(study.choices), ax is axes[0])
    used = sorted({run for one in found for run in one.ids})
    return sheet.save(figure, study.folder / name, used, {**study.side, "notes": list(foot)})


def title(ax: Axes, key: tuple[str, ...], keys: Sequence[tuple[str, str]], first: bool) -> None:
    """A panel's data set and setting; once where all panels share them."""
    if first or len(keys) > 1:
        ax.set_title(arms.panel_title(*key[:2]), loc="left")


def legend(names: Sequence[str], looks: Mapping[str, Look]) -> dict[str, Line2D]:
    """A handle per arm, in the order of the plan."""
    order = list(dict.fromkeys(names))
    return {n: Line2D([], [], color=looks[n].colour, marker=looks[n].marker, markersize=4) for n in order}


def chosen_items(roots: Roots, choices: Sequence[Choice], metrics: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The item records of the chosen runs, for each metric that all of them have records of."""
    ids = sorted({run for choice in choices for run in choice.ids})
    out = {}
    for metric in set(metrics) & ITEMS.keys():
        task, value, weight = ITEMS[metric]
        if all(folder_of(roots, run).items(task).exists() for run in ids):
            found = table.items(roots, ids, task)
            weights = found[weight].astype(float) if weight else 1.0
            # Right or wrong stays boolean: so `stats.over_items` knows a share from a number that happens to be 0 or 1.
            values = found[value] if found[value].dtype == bool else found[value].astype(float)
            out[metric] = found[["id", "item"]].assign(value=values, weight=weights)
    return out
