"""What each arm forgot of the base's predictions on text beside the task, in the form of MiLoRA's Table 8.

L_f = KL(base || tuned) + H(base): the floor H is what the base itself has, so it is the row of the base, and L_f and KL
rank alike. Statistics, ties and marks are the result table's, with chunks of text as items, weighed by their tokens.

Source: arXiv:2406.09044 section 5.4 and Table 8.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ablora.store.atomic import write_text
from ablora_analysis import text
from ablora_analysis.figures import arms, result_table, result_text, sheet, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.result_table import Cell, Panel, ResultTable
from ablora_analysis.figures.study import Study, chosen_items, title
from ablora_analysis.figures.style import Look
from ablora_analysis.table import metrics_of
from ablora_analysis.text import Entry, Sheet

LOSS, KL, TEXT, AGREEMENT = "forgetting_nats", "forgetting_kl_nats", "text_loss_nats", "top1_agreement"
METRICS = (LOSS, KL, TEXT, AGREEMENT)
_OF_BASE = {LOSS: "forgetting_floor_nats", TEXT: "base_text_loss_nats"}
"""The base's own value of a metric; its KL to itself is 0, its agreement with itself 1."""
_EQUAL = 1e-4
"""Relative: the base of two packs may round differently, in bfloat16 by some 1e-5 (a guess, not measured)."""


class OfBase(NamedTuple):
    """The untouched base on the same text."""

    setting: str
    dataset: str
    values: dict[str, float]
    """By metric, as the mean over runs."""
    differs: tuple[str, ...]
    """Metrics of the base that are not the same in all runs: another base, or other text."""


class ForgettingTable(NamedTuple):
    result: ResultTable
    bases: tuple[OfBase, ...]
    notes: tuple[str, ...]


def points(prepared: pd.DataFrame, choices: Sequence[Choice], items: Mapping[str, pd.DataFrame]) -> ForgettingTable:
    """The table's numbers; `prepared` has the metrics of forgetting, `items` those of chunks."""
    known = [metric for metric in METRICS if metric in metrics_of(prepared)]
    result = result_table.points(prepared, choices, items, known)
    bases = tuple(_of_base(prepared, choices, key) for key in arms.panels(choices))
    return ForgettingTable(result, bases, (*_notes(result, bases, choices), *result.notes))


def _of_base(prepared: pd.DataFrame, choices: Sequence[Choice], key: tuple[str, str]) -> OfBase:
    ids = {run for choice in choices if (choice.setting, choice.dataset) == key for run in choice.ids}
    own = prepared[prepared["id"].isin(ids)]
    found = {metric: own[name].dropna() for metric, name in _OF_BASE.items() if name in own}
    values = {metric: float(column.mean()) for metric, column in found.items() if len(column)}
    differs = [m for m, column in found.items() if len(column) and column.max() - column.min() > _EQUAL * values[m]]
    return OfBase(*key, {**values, KL: 0.0, AGREEMENT: 1.0}, tuple(differs))


def _notes(result: ResultTable, bases: Sequence[OfBase], choices: Sequence[Choice]) -> list[str]:
    floors = dict.fromkeys(f"{base.values[LOSS]:.3f}" for base in bases if LOSS in base.values)
    out = [f"Forgetting loss = KL + the base's own {' or '.join(floors)} nats (the floor)."] if floors else []
    out += [
        f"The base is not the same in all runs ({_where(base, bases)}): other text or another base; not comparable."
        for base in bases
        if base.differs
    ]
    measured = {(p.setting, p.dataset, cell.arm) for p in result.panels if p.metric == KL for cell in p.cells}
    missing = dict.fromkeys(c.arm for c in choices if c.ids and c[:3] not in measured)
    return [*out, *([f"Forgetting not measured: {', '.join(missing)}."] if missing else [])]


def _where(base: OfBase, bases: Sequence[OfBase]) -> str:
    return arms.panel_title(base.setting, base.dataset) if len(bases) > 1 else ", ".join(base.differs)


def table_sheet(found: ForgettingTable) -> Sheet:
    """A row for the base and one per arm, data set after data set; the difference is of the KL, to the best."""
    panels = {(p.setting, p.dataset, p.metric): p for p in found.result.panels}
    keys = [key for key in dict.fromkeys(key[:2] for key in panels) if any(panels[*key, m].cells for m in _of(panels))]
    header = ("method", "lr", *(style.axis_title(metric) for metric in _of(panels)), "Δ KL to best")
    rows = []
    for key in keys:
        base = next(b for b in found.bases if (b.setting, b.dataset) == key)
        name = f"base ({arms.panel_title(*key)})" if len(keys) > 1 else "base"
        rows.append((Entry(name), Entry(""), *(_base_entry(base, metric) for metric in _of(panels)), Entry("")))
        rows += [_line(arm, [panels[*key, metric] for metric in _of(panels)]) for arm in _arms(panels, key)]
    return Sheet(header, tuple(rows), (*found.notes, "Δ: mean paired difference with its interval."))


def _of(panels: Mapping[tuple[str, str, str], Panel]) -> list[str]:
    return [metric for metric in METRICS if metric in {key[2] for key in panels}]


def _arms(panels: Mapping[tuple[str, str, str], Panel], key: tuple[str, str]) -> list[str]:
    return list(dict.fromkeys(cell.arm for metric in _of(panels) for cell in panels[*key, metric].cells))


def _base_entry(base: OfBase, metric: str) -> Entry:
    value = base.values.get(metric, math.nan)
    return Entry("" if math.isnan(value) else f"{value:.3f}")


def _line(arm: str, panels: Sequence[Panel]) -> tuple[Entry, ...]:
    cells = {panel.metric: cell for panel in panels for cell in panel.cells if cell.arm == arm}
    rate = next(iter(cells.values())).lr
    numbers = [_number(cells.get(panel.metric)) for panel in panels]
    return Entry(arm), Entry(f"{rate:g}"), *numbers, Entry(_difference(cells[KL]) if KL in cells else "")


def _number(cell: Cell | None) -> Entry:
    return Entry(result_table.number(cell), cell.best or cell.tied) if cell else Entry("")


def _difference(cell: Cell) -> str:
    if (pair := cell.to_best) is None:
        return "best" if cell.best else "reference" if cell.reference else ""
    interval = "" if math.isnan(pair.low) else f" [{pair.low:+.4f}, {pair.high:+.4f}]"
    return f"{pair.difference:+.4f}{interval}"


def frame(found: ForgettingTable) -> pd.DataFrame:
    """The result table's columns, and `base`: what the untouched base has of each metric."""
    out = result_text.frame(found.result)
    of_base = {(b.setting, b.dataset, metric): value for b in found.bases for metric, value in b.values.items()}
    keys = zip(out["setting"], out["dataset"], out["metric"])
    return out.assign(base=[of_base.get(key, math.nan) for key in keys])


def draw(ax: Axes, panel: Panel, base: float, looks: Mapping[str, Look] | None = None) -> None:
    """The result table's panel; a dotted line where the base is."""
    result_table.draw(ax, panel, looks)
    ax.locator_params(axis="x", nbins=5)
    if math.isfinite(base):
        ax.axvline(base, color=style.BLACK, linewidth=0.8, linestyle=":")


def paint(study: Study) -> list[Path]:
    """The table as figure, CSV, Markdown and LaTeX; the figure leaves the forgetting loss to them, whose panel is that
    of the KL with another axis."""
    ids = {run for choice in study.choices for run in choice.ids}
    own = study.prepared[study.prepared["id"].isin(ids)]
    if KL not in metrics_of(own) or own[KL].isna().all():
        return []
    found = points(study.prepared, study.choices, chosen_items(study.roots, study.choices, METRICS))
    stem = study.folder / "forgetting_table"
    texts = {
        "csv": frame(found).to_csv(index=False, lineterminator="\n"),
        "md": text.markdown(table_sheet(found)),
        "tex": text.latex(table_sheet(found)),
    }
    for kind, content in texts.items():
        write_text(stem.with_suffix(f".{kind}"), content, durable=False)
    return [*_paint_panels(study, found, stem), *(stem.with_suffix(f".{kind}") for kind in texts)]


def _paint_panels(study: Study, found: ForgettingTable, stem: Path) -> list[Path]:
    bases = {(b.setting, b.dataset): b.values for b in found.bases}
    order = {metric: number for number, metric in enumerate((KL, TEXT, AGREEMENT))}
    shown = sorted((p for p in found.result.panels if p.cells and p.metric in order), key=lambda p: order[p.metric])
    foot = [*found.notes[:1], "Dotted: the base.", *found.notes[1:]]
    figure, axes = sheet.sheet([result_table.height_in(panel) for panel in shown], " ".join(foot), {})
    looks = style.looks(choice.arm for choice in study.choices)
    for ax, panel in zip(axes, shown):
        draw(ax, panel, bases[panel.setting, panel.dataset].get(panel.metric, math.nan), looks)
        title(ax, (panel.setting, panel.dataset), arms.panels(study.choices), panel is shown[0])
    return sheet.save(figure, stem, found.result.ids, {**study.side, "notes": foot})
