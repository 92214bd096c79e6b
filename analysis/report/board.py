"""The leaderboard: every arm at its chosen rate, with intervals, the difference to the best, ties and budgets."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from ablora_analysis.figures import style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.result_table import Cell
from ablora_analysis.report import numbers
from ablora_analysis.report.evidence import Evidence
from ablora_analysis.report.grid import Column, Entry, Line, controls, grid, text
from ablora_analysis.report.html import Html, join, tag
from ablora_analysis.report.marks import swatch
from ablora_analysis.report.numbers import number, signed

NAME = "board"
_BADGES = {"edge": ("edge", "the best rate is the least or greatest tried: not ranked"),
           "diverged": ("diverged", "a seed diverged at this rate: mean of the others, not ranked"),
           "seeds": ("few seeds", "fewer finished seeds than the others: not ranked")}  # fmt: skip
_SPEAKS_OF = {"seeds": "95 % t interval over seeds", "range": "least and greatest of two seeds",
              "items": "one seed: 95 % interval over its items only", "none": "no interval",
              "share": "one seed: 95 % Wilson interval over its items only"}  # fmt: skip


class Spent(NamedTuple):
    """What an arm's compared runs took: means, and the greatest peak."""

    tokens_per_s: float
    peak: float
    """GiB."""


def board(evidence: Evidence) -> Html:
    """The controls and the table; a sentence where no arm has a run to show."""
    metrics = list(dict.fromkeys(panel.metric for panel in evidence.result.panels if panel.cells))
    if not evidence.choices or not metrics:
        return tag("p", "No arm has a finished run.")
    cells = {(p.setting, p.dataset, c.arm, p.metric): c for p in evidence.result.panels for c in p.cells}
    datasets, settings = ([getattr(c, f) for c in evidence.choices] for f in ("dataset", "setting"))
    keys = [key for key, values in (("dataset", datasets), ("setting", settings)) if len(set(values)) > 1]
    ordered = sorted(evidence.choices, key=lambda c: (c.dataset, c.setting, _merit(cells.get((*c[:3], metrics[0])))))
    lines = [_line(evidence, choice, metrics, keys, cells) for choice in ordered]
    filters = [("method", "method", _distinct(c.method for c in evidence.choices)),
               ("dataset", "data set", _distinct(datasets)), ("setting", "setting", _distinct(settings))]  # fmt: skip
    return join(controls(NAME, filters, "arm, setting, mark"),
                grid(NAME, "Leaderboard", _columns(evidence, metrics, keys), lines))  # fmt: skip


def _distinct(values: object) -> list[str]:
    return sorted({str(value) for value in values if value})  # pyright: ignore[reportGeneralTypeIssues]


def _merit(cell: Cell | None) -> float:
    if cell is None:
        return math.inf
    return cell.score.mean


def _columns(evidence: Evidence, metrics: Sequence[str], keys: Sequence[str]) -> list[Column]:
    out = [
        Column("arm"),
        *(Column({"dataset": "data set"}.get(key, key)) for key in keys),
        Column("lr", True, "learning rate"),
    ]
    for metric in metrics:
        better = "lower" if style.lower_is_better(metric) else "higher"
        out.append(Column(style.axis_title(metric), True, f"mean and interval; {better} is better"))
        out.append(Column("Δ to best", True, f"{metric}: mean paired difference to the best mean, and its interval"))
    if evidence.result.ranks_differ:
        out.append(Column("rank", True, "low-rank directions of a module, of all its experts"))
    return [*out, Column("parameters", True, "trainable parameters"),
            Column("adapter", True, "size of the trained factors on disk"),
            Column("tokens/s", True, "mean over the arm's runs; of the pack, where runs share one"),
            Column("peak memory", True, "the greatest of any of its processes"),
            Column("diverged", True, "runs that diverged, of all finished ones at every rate")]  # fmt: skip


def _line(evidence: Evidence, choice: Choice, metrics: Sequence[str], keys: Sequence[str], cells: dict) -> Line:
    found = [cells.get((*choice[:3], metric)) for metric in metrics]
    name = join(swatch(evidence.looks[choice.arm]), tag("bdi", choice.arm), *_marks(found))
    entries = [Entry(name, choice.arm), *(text(getattr(choice, key)) for key in keys)]
    entries.append(Entry(tag("span", f"{choice.lr:g}"), choice.lr))
    for cell in found:
        entries += [_score(cell), _to_best(cell)]
    budget = next(b for b in evidence.result.budgets if (b.setting, b.dataset, b.arm) == choice[:3])
    spent = _spent(evidence.runs, choice)
    if evidence.result.ranks_differ:
        entries.append(Entry(tag("span", budget.rank), float(budget.rank.split()[0]) if budget.rank else math.nan))
    entries += [
        Entry(tag("span", numbers.whole(budget.trainable_parameters)), budget.trainable_parameters),
        Entry(tag("span", numbers.size(budget.adapter_bytes)), budget.adapter_bytes),
        Entry(tag("span", numbers.whole(spent.tokens_per_s)), spent.tokens_per_s),
        Entry(tag("span", numbers.size(spent.peak * 2**30)), spent.peak),
        Entry(tag("span", budget.diverged_share), _share(budget.diverged_share)),
    ]
    facets = (("method", choice.method), ("dataset", choice.dataset), ("setting", choice.setting))
    return Line(tuple(entries), facets)


def _marks(cells: Sequence[Cell | None]) -> list[Html]:
    """The reasons why an arm is not ranked, once for all its metrics; there is no score where there is no run."""
    reasons = dict.fromkeys(cell.not_ranked for cell in cells if cell and cell.not_ranked)
    out = [tag("span", *_BADGES[r][:1], class_="badge warn", title=_BADGES[r][1]) for r in reasons if r in _BADGES]
    return out if any(cells) else [tag("span", "no run", class_="badge bad", title="no finished run at its rate")]


def _score(cell: Cell | None) -> Entry:
    if cell is None:
        return Entry(Html(""))
    ends = "" if math.isnan(cell.score.low) else f"[{number(cell.score.low)}, {number(cell.score.high)}]"
    marked = cell.best or cell.tied
    mean = tag("strong" if marked else "span", number(cell.score.mean))
    seeds = f"{cell.score.seeds} seed{'s' if cell.score.seeds > 1 else ''}"
    mark = tag("span", "best" if cell.best else "tied", class_="badge good") if marked else None
    return Entry(join(tag("span", mark, mean, class_="one"),
                      tag("small", ends or "no interval", title=f"{_SPEAKS_OF[cell.score.basis]}; {seeds}")),
                 cell.score.mean)  # fmt: skip


def _to_best(cell: Cell | None) -> Entry:
    if cell is None or (cell.to_best is None and not cell.reference):
        return Entry(Html(""))
    if cell.to_best is None:
        return Entry(tag("span", "best" if cell.best else "reference"), 0.0)
    pair = cell.to_best
    ends = "" if math.isnan(pair.low) else f"[{signed(pair.low)}, {signed(pair.high)}]"
    tested = "" if math.isnan(cell.p_holm) else f"; p = {cell.p_holm:.2g} (Holm)"
    return Entry(join(tag("span", signed(pair.difference), class_="one"),
                      tag("small", ends or "no interval", title=f"{_SPEAKS_OF[pair.basis]}{tested}")),
                 pair.difference)  # fmt: skip


def _spent(runs: pd.DataFrame, choice: Choice) -> Spent:
    own = runs.loc[list(choice.ids)]
    peaks = [own[str(column)].astype(float).max() for column in own.columns if str(column).startswith("peak")]
    rate = own["tokens_per_s"].astype(float).mean() if "tokens_per_s" in own else math.nan
    return Spent(float(rate), float(max(peaks, default=math.nan)))


def _share(text: str) -> float:
    part, _, whole = text.partition("/")
    return float(part) / float(whole) if whole and float(whole) else math.nan
