"""The tuned s against the closed forms: a curve over log s per method and rank, and what each formula would cost."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ablora.store.atomic import write_text
from ablora.store.run_folder import folder_of
from ablora_analysis import text
from ablora_analysis.figures import arms, scaling_curves, scaling_runs, sheet, style
from ablora_analysis.figures.arms import DIVERGED, USED
from ablora_analysis.figures.scaling_curves import DRAWS, Curve, Panel, Span
from ablora_analysis.figures.study import Study
from ablora_analysis.figures.style import Look
from ablora_analysis.table import names, search_of
from ablora_analysis.text import Entry, Sheet

LINES: Mapping[str, Any] = {"16/r": "--", "16/√r": "-.", "√(3n/r)": ":", "1": "-"}
"""How a closed form's line is drawn."""
_LINE_COLOUR = "#333333"


def curves(study: Study) -> list[Curve]:
    """A curve for each panel of the study in which s varies; none where it does not."""
    asked = search_of(study.roots, study.name)
    wanted = [m for m in asked["tuner"]["metrics"][:1] if m in names(study.prepared)]
    metric = wanted[0] if wanted else arms.selection_metric(study.prepared)
    if metric is None:
        return []
    found = []
    for panel in scaling_curves.panels(arms.every_trial(study.prepared), [one["key"] for one in asked["space"]]):
        if len(panel.rows) < scaling_curves.TRIALS:
            continue
        panel = _with_s(study, panel)
        if scaling_curves.varies(panel, metric):
            found.append(scaling_curves.curve(*_with_theory(study, panel), metric))
    return found


def _with_s(study: Study, panel: Panel) -> Panel:
    """The panel's finished runs with the s that they recorded."""
    rows = panel.rows
    own = [
        scaling_runs.realised(folder_of(study.roots, run)) if fate == USED else None
        for run, fate in zip(rows["id"], rows["fate"])
    ]
    nothing = math.nan
    return panel._replace(
        rows=rows.assign(s=[o.s if o else nothing for o in own], spread=[o.spread if o else nothing for o in own])
    )


def _with_theory(study: Study, panel: Panel) -> tuple[Panel, Mapping[str, float]]:
    """The panel with the s of runs that diverged, and the closed forms: all its runs have the same modules."""
    rows = panel.rows
    done = [folder_of(study.roots, run) for run in rows["id"][rows["fate"] == USED]]
    shapes = next((found for folder in done if (found := scaling_runs.shapes_of(folder))), [])
    lost = {
        run: scaling_runs.specified(folder_of(study.roots, run), shapes) for run in rows["id"][rows["fate"] == DIVERGED]
    }
    s = [lost.get(run, s) for run, s in zip(rows["id"], rows["s"])]
    return panel._replace(rows=rows.assign(s=np.array(s, dtype=float))), scaling_runs.closed_forms(done[0], shapes)


def notes(found: Sequence[Curve]) -> list[str]:
    """What is drawn, and what it rests on; for the foot."""
    tuned = sorted({key for one in found for key in one.tuned})
    out = [
        "Marks: trials (ringed: the best; open, at the border: beyond it). Line: the objective over s"
        + (f" at the best tried {', '.join(tuned)}" if tuned else "")
        + ", a Gaussian process through all trials; band: 95 %, pointwise. Bar below: the best s, 95 %.",
        "r is the rank of one expert; n the input features; 16 for alpha and 1 for eta are the presets'.",
    ]
    if any(one.spread > 1.001 for one in found):
        out.append("Where modules differ in s, it is their geometric mean.")
    if lost := sum(len(one.diverged) for one in found):
        out.append(f"×: {lost} diverged, in the fit as bad as the worst trial that finished.")
    if edge := [_setting(one, found) for one in found if one.edge]:
        where = "each panel" if len(edge) == len(found) > 1 else "; ".join(edge)
        out.append(f"†: the best s of {where} may lie beyond what was tried.")
    return out


def _setting(one: Curve, found: Sequence[Curve]) -> str:
    """A panel's name; the data set where there are several."""
    several = len({other.dataset for other in found}) > 1
    return ", ".join(filter(None, (one.method, arms.panel_title(one.setting, one.dataset if several else ""))))


def table(found: Sequence[Curve], foot: Sequence[str]) -> Sheet:
    """A row per panel and closed form."""
    header = ("method", "trials", "best s", "formula", "its s", "log2 of its s over the best", "Δ at it")
    rows = []
    for one in found:
        mark = "†" if one.edge else ""
        best = Entry(_span(one.best, ".3g") + mark)
        own = (Entry(_setting(one, found)), Entry(str(len(one.ids))), best)
        rows += [
            (*own, Entry(theory.name), Entry(f"{theory.s:.3g}"), Entry(_span(theory.octaves, "+.1f")),
             Entry("outside" if math.isnan(theory.loss.middle) else _span(theory.loss, ".3f")))
            for theory in one.theories
        ]  # fmt: skip
    words = style.axis_title(found[0].metric)
    said = f"Δ: {words}, at the formula's s less at the best s, each at its best rate; median [95 %] of {DRAWS} draws."
    some = any(math.isnan(theory.loss.middle) for one in found for theory in one.theories)
    outside = ["Outside: s was not tried so far out."] if some else []
    return Sheet(header, tuple(rows), (said, *outside, *foot))


def _span(own: Span, form: str) -> str:
    return f"{own.middle:{form}} [{own.low:{form}}, {own.high:{form}}]"


def frame(found: Sequence[Curve]) -> pd.DataFrame:
    """One row per panel and closed form; a panel without one has a row of its own."""
    return pd.DataFrame([row for one in found for row in _rows(one)])


def _rows(one: Curve) -> list[dict[str, object]]:
    own = {
        "setting": one.setting, "dataset": one.dataset, "method": one.method, "metric": one.metric,
        "trials": len(one.ids), "diverged": len(one.diverged), "tuned_with": " ".join(one.tuned),
        "s_tried_low": one.grid[0], "s_tried_high": one.grid[-1], "s_over_modules": one.spread,
        "best_s": one.best.middle, "best_s_low": one.best.low, "best_s_high": one.best.high, "edge": one.edge,
        "best_trial_s": one.s[one.best_trial], "best_trial_value": one.values[one.best_trial],
    }  # fmt: skip
    return [
        {**own, "formula": theory.name, "formula_s": theory.s, **_parts("log2_distance", theory.octaves),
         **_parts("loss", theory.loss)}
        for theory in one.theories
    ] or [own]  # fmt: skip


def _parts(name: str, span: Span) -> dict[str, float]:
    return {name: span.middle, f"{name}_low": span.low, f"{name}_high": span.high}


def draw(ax: Axes, one: Curve, look: Look) -> None:
    """Trials, curve and band over a logarithmic axis; a line for each closed form; the best s as a bar below."""
    ax.fill_between(one.grid, one.low, one.high, color=look.colour, alpha=0.18, linewidth=0)
    ax.plot(one.grid, one.middle, color=look.colour)
    bottom, top = limits(one)
    inside = [i for i, value in enumerate(one.values) if bottom <= value <= top]
    ax.plot([one.s[i] for i in inside], [one.values[i] for i in inside], linestyle="none", color=look.colour,
            marker=look.marker, markersize=3.2, alpha=0.8, markeredgewidth=0)  # fmt: skip
    beyond = [one.s[i] for i in range(len(one.s)) if i not in inside]
    worst = 0.97 if style.lower_is_better(one.metric) else 0.03
    at, sign = ax.get_xaxis_transform(), "^" if worst > 0.5 else "v"
    ax.plot(beyond, [worst] * len(beyond), transform=at, linestyle="none", color=look.colour, marker=sign,
            markersize=3.5, markerfacecolor="none", markeredgewidth=0.7)  # fmt: skip
    best = one.best_trial
    ax.plot([one.s[best]], [one.values[best]], marker="o", markersize=6.5, markerfacecolor="none",
            markeredgecolor=style.BLACK, markeredgewidth=0.8)  # fmt: skip
    ax.plot(one.diverged, [worst] * len(one.diverged), transform=at, color=look.colour,
            marker="x", markersize=4, linestyle="none", markeredgewidth=1.2)  # fmt: skip
    for theory in one.theories:
        ax.axvline(theory.s, color=_LINE_COLOUR, linewidth=0.9, linestyle=LINES.get(theory.name, "-"))
    ax.plot([one.best.low, one.best.high], [0.035] * 2, transform=at, color=style.BLACK, linewidth=2.0,
            solid_capstyle="butt")  # fmt: skip
    ax.plot([one.best.middle], [0.035], transform=at, color=style.BLACK, marker="|", markersize=7, markeredgewidth=1.4)
    _axes(ax, one, bottom, top)


def _axes(ax: Axes, one: Curve, bottom: float, top: float) -> None:
    ax.set_xscale("log", base=2)
    ends = [one.grid[0], one.grid[-1], *(theory.s for theory in one.theories)]
    ax.set_xlim(min(ends) / 1.3, max(ends) * 1.3)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    pad = 0.08 * (top - bottom)
    ax.set_ylim(bottom - 1.5 * pad, top + pad)
    ax.set_xlabel("scaling s")
    ax.set_ylabel(style.axis_title(one.metric).replace(" (", "\n("))


def limits(one: Curve) -> tuple[float, float]:
    """The curve with its band, and the best trial: of the others many are far worse, at a rate that is not theirs."""
    best = one.values[one.best_trial]
    return min(*one.low, best), max(*one.high, best)


def legend(found: Sequence[Curve]) -> dict[str, Line2D]:
    """A line per closed form."""
    used = dict.fromkeys(theory.name for one in found for theory in one.theories)
    return {f"s = {n}": Line2D([], [], color=_LINE_COLOUR, linewidth=0.9, linestyle=LINES.get(n, "-")) for n in used}


def paint(study: Study) -> list[Path]:
    """The figure, and the table as CSV, Markdown and LaTeX; nothing for a study in which s does not vary."""
    found = curves(study)
    if not found:
        return []
    foot, stem = notes(found), study.folder / "scaling"
    readable = table(found, foot)
    texts = {
        "csv": frame(found).to_csv(index=False, lineterminator="\n"),
        "md": text.markdown(readable),
        "tex": text.latex(readable),
    }
    for kind, content in texts.items():
        write_text(stem.with_suffix(f".{kind}"), content, durable=False)
    figure, axes = sheet.sheet([1.7] * len(found), " ".join(foot), legend(found))
    looks = style.looks(one.method for one in found)
    for ax, one in zip(axes, found):
        draw(ax, one, looks[one.method])
        ax.set_title(_setting(one, found) + (" †" if one.edge else ""), loc="left")
    ids = sorted({run for one in found for run in one.ids})
    side = {**study.side, "notes": foot, "panels": [_side(one) for one in found]}
    return [*sheet.save(figure, stem, ids, side), *(stem.with_suffix(f".{kind}") for kind in texts)]


def _side(one: Curve) -> dict[str, Any]:
    """A panel's numbers, theories by name; NaN is null."""
    plain = one._asdict() | {"best": one.best._asdict(), "theories": _rows(one)}
    return {key: _nullable(value) for key, value in plain.items()}


def _nullable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _nullable(own) for key, own in value.items()}
    return [_nullable(own) for own in value] if isinstance(value, list | tuple) else value
