"""Every figure and table of a study, from its run folders, into studies/<name>/figures/."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from ablora.spec import BadInput, check
from ablora.store.atomic import Corrupted, write_text
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora_analysis import table, text
from ablora_analysis.figures import arms, lr_curves, result_table, result_text, style, training_curves
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.sheet import rc, save, sheet

_ITEMS = {
    "answer_loss_nats": ("answer_loss", "loss_nats", "answer_tokens"),
    "exact_match": ("generation", "correct", ""),
}
"""The item records behind a metric: task, column, and the column that weighs an item."""

_log = logging.getLogger(__name__)


def draw_all(
    roots: Roots, study: str | None = None, stale: Callable[[RunFolder], bool] = RunFolder.is_stale
) -> list[Path]:
    """Draw one study, or each that has a finished run; returns the files, sorted. Bytes are equal when runs are.

    Stale, failed and unfinished runs are left out, counted in the foot and named in the side file. A run whose files
    cannot be read is left out too, and `Corrupted` names it when everything else is drawn.
    """
    names = [study] if study is not None else table.studies(roots)
    check(bool(names), "study", study, f"planned first: {roots.studies} has no study")
    paths: list[Path] = []
    problems: list[Corrupted] = []
    for name in names:
        try:
            drawn, found = _draw_study(roots, name, stale)
        except BadInput as error:
            if study is not None or isinstance(error, Corrupted):
                raise
            _log.warning("%s", error)
            continue
        paths += drawn
        problems += found
    check(bool(paths), "study", study, f"with finished runs; none of {', '.join(names)} has one")
    if problems:
        raise problems[0]
    return sorted(paths)


def _draw_study(roots: Roots, study: str, stale: Callable[[RunFolder], bool]) -> tuple[list[Path], list[Corrupted]]:
    runs, problems = table.read_rows(roots, study, stale)
    prepared = arms.prepare(table.cells(roots, study, runs))
    choices = arms.choose(prepared)
    if not any(choice.ids for choice in choices):
        if problems:
            raise problems[0]
        fates = ", ".join(f"{n} {fate}" for fate, n in prepared.drop_duplicates("id")["fate"].value_counts().items())
        raise BadInput("study", study, f"a study with at least one finished run to draw; its runs are: {fates}")
    folder = roots.studies / study / "figures"
    side = {"study": study, "left_out": arms.left_out(prepared), "choices": [_readable(c) for c in choices]}
    with rc():
        paths = _draw_table(roots, folder, prepared, choices, side)
        paths += _draw_training(roots, folder, prepared, choices, side)
        paths += _draw_rates(folder, prepared, choices, side)
    return paths, problems


def _readable(choice: Choice) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in choice._asdict().items()}


def _draw_table(
    roots: Roots, folder: Path, prepared: pd.DataFrame, choices: Sequence[Choice], side: Mapping[str, Any]
) -> list[Path]:
    items = chosen_items(roots, choices, result_table.shown_metrics(prepared))
    result = result_table.points(prepared, choices, items)
    shown = [panel for panel in result.panels if panel.cells]
    texts = {
        "csv": result_text.frame(result).to_csv(index=False, lineterminator="\n"),
        "md": text.markdown(result_text.sheet(result)),
        "tex": text.latex(result_text.sheet(result)),
    }
    stem = folder / "result_table"
    for kind, content in texts.items():
        write_text(stem.with_suffix(f".{kind}"), content, durable=False)
    figure, axes = sheet([result_table.height_in(panel) for panel in shown], " ".join(result.notes), {})
    looks = style.looks(choice.arm for choice in choices)
    for ax, panel in zip(axes, shown):
        result_table.draw(ax, panel, looks)
        _title(ax, (panel.setting, panel.dataset), arms.panels(choices), panel is shown[0])
    paths = save(figure, stem, result.ids, {**side, "notes": list(result.notes)})
    return [*paths, *(stem.with_suffix(f".{kind}") for kind in texts)]


def chosen_items(roots: Roots, choices: Sequence[Choice], metrics: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The item records of the chosen runs, for each metric that all of them have records of."""
    ids = sorted({run for choice in choices for run in choice.ids})
    out = {}
    for metric in set(metrics) & _ITEMS.keys():
        task, value, weight = _ITEMS[metric]
        if all(folder_of(roots, run).items(task).exists() for run in ids):
            found = table.items(roots, ids, task)
            weights = found[weight].astype(float) if weight else 1.0
            # Right or wrong stays boolean: so `stats.over_items` knows a share from a number that happens to be 0 or 1.
            values = found[value] if found[value].dtype == bool else found[value].astype(float)
            out[metric] = found[["id", "item"]].assign(value=values, weight=weights)
    return out


def _draw_training(
    roots: Roots, folder: Path, prepared: pd.DataFrame, choices: Sequence[Choice], side: Mapping[str, Any]
) -> list[Path]:
    ids = sorted({run for choice in choices for run in (*choice.ids, *choice.diverged)})
    metrics = [training_curves.TRAIN, training_curves.EVAL]
    records = table.curves(roots, ids, metrics)
    found = [curve for metric in metrics for curve in training_curves.points(choices, records, metric)]
    if not found:
        return []
    keys = [(*key, metric) for key in arms.panels(choices) for metric in metrics]
    shown = {key: own for key in keys if (own := [c for c in found if (c.setting, c.dataset, c.metric) == key])}
    foot = [*training_curves.notes(found), *arms.notes(prepared, choices)]
    looks = style.looks(choice.arm for choice in choices)
    figure, axes = sheet([1.55] * len(shown), " ".join(foot), _legend([curve.arm for curve in found], looks))
    for ax, (key, own) in zip(axes, shown.items()):
        training_curves.draw(ax, own, looks)
        _title(ax, key[:2], arms.panels(choices), ax is axes[0])
    used = sorted({run for curve in found for run in curve.ids})
    return save(figure, folder / "training_curves", used, {**side, "notes": foot})


def _draw_rates(folder: Path, prepared: pd.DataFrame, choices: Sequence[Choice], side: Mapping[str, Any]) -> list[Path]:
    metrics = result_table.shown_metrics(prepared)
    found = [curve for metric in metrics for curve in lr_curves.points(prepared, choices, metric)]
    keys = [(*key, metric) for key in arms.panels(choices) for metric in metrics]
    shown = {key: [c for c in found if (c.setting, c.dataset, c.metric) == key] for key in keys}
    foot = [*lr_curves.notes(shown[keys[0]]), *arms.notes(prepared, choices)]
    looks = style.looks(choice.arm for choice in choices)
    figure, axes = sheet([1.75] * len(shown), " ".join(foot), _legend([curve.arm for curve in found], looks))
    for ax, (key, own) in zip(axes, shown.items()):
        lr_curves.draw(ax, own, looks)
        _title(ax, key[:2], arms.panels(choices), ax is axes[0])
    used = sorted({run for curve in found for run in curve.ids})
    return save(figure, folder / "lr_curves", used, {**side, "notes": foot})


def _title(ax: Any, key: tuple[str, str], keys: Sequence[tuple[str, str]], first: bool) -> None:
    """A panel's data set and setting; once where all panels share them."""
    if first or len(keys) > 1:
        ax.set_title(arms.panel_title(*key), loc="left")


def _legend(names: Sequence[str], looks: Mapping[str, style.Look]) -> dict[str, Line2D]:
    """A handle per arm, in the order of the plan."""
    order = list(dict.fromkeys(names))
    return {n: Line2D([], [], color=looks[n].colour, marker=looks[n].marker, markersize=4) for n in order}
