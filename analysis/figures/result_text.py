"""The result table as text: a tidy CSV with every number, and a sheet to be read (Markdown, LaTeX)."""

import math

import pandas as pd

from ablora_analysis import stats
from ablora_analysis.figures.result_table import Cell, Panel, ResultTable, number
from ablora_analysis.text import Entry, Sheet


def frame(result: ResultTable) -> pd.DataFrame:
    """One row per arm, data set and metric. `low` and `high` are of the mean; those with `difference_` of the
    paired difference to the best: on these items, with `new_items` on other items too (crossed model), with `bootstrap`
    the same without a normal distribution. `basis` says what each interval speaks of."""
    budgets = {(b.setting, b.dataset, b.arm): b for b in result.budgets}
    return pd.DataFrame([_row(panel, cell, budgets) for panel in result.panels for cell in panel.cells])


def _row(panel: Panel, cell: Cell, budgets: dict) -> dict[str, object]:
    pair, budget = cell.to_best, budgets[panel.setting, panel.dataset, cell.arm]
    return {
        "setting": panel.setting, "dataset": panel.dataset, "arm": cell.arm, "method": cell.method, "lr": cell.lr,
        "metric": panel.metric, "mean": cell.score.mean, "low": cell.score.low, "high": cell.score.high,
        "sd_over_seeds": cell.score.sd, "seeds": cell.score.seeds, "basis": cell.score.basis, "best": cell.best,
        "tied_with_best": cell.tied, "not_ranked": cell.not_ranked,
        "difference_to_best": pair.difference if pair else math.nan,
        "difference_low": pair.low if pair else math.nan, "difference_high": pair.high if pair else math.nan,
        "difference_basis": pair.basis if pair else "",
        "difference_new_items_low": pair.new_items_low if pair else math.nan,
        "difference_new_items_high": pair.new_items_high if pair else math.nan,
        "difference_bootstrap_low": cell.bootstrap[0], "difference_bootstrap_high": cell.bootstrap[1],
        "sd_of_differences": pair.sd if pair else math.nan,
        "p_holm": cell.p_holm, "p_permutation": cell.p_permutation,
        "smallest_p": stats.smallest_p(pair.seeds) if pair and pair.seeds > 2 else math.nan,
        "comparisons": sum(c.to_best is not None for c in panel.cells),
        "detectable_difference": panel.detectable if math.isfinite(panel.detectable) else math.nan,
        "rank": budget.rank, "trainable_parameters": budget.trainable_parameters, "adapter_bytes": budget.adapter_bytes,
        "diverged": budget.diverged_share, "tuned_on": budget.robustness.metric,
        "lr_within_a_point_low": budget.robustness.low, "lr_within_a_point_high": budget.robustness.high,
        "lr_within_a_point_decades": budget.robustness.decades,
    }  # fmt: skip


_SPEAKS_OF = {
    "seeds": " [95 % t interval over seeds]",
    "range": " [two seeds: their range]",
    "items": " [one seed: 95 % interval over items only]",
    "share": " [one seed: 95 % Wilson interval over items only]",
    "none": " [no interval: seeds or items that all agree, or items too few or not recorded]",
}


def sheet(result: ResultTable) -> Sheet:
    """A row per arm (and setting); per data set its learning rate and, per metric, the mean and the paired difference
    to the best."""
    datasets = list(dict.fromkeys(panel.dataset for panel in result.panels))
    metrics = list(dict.fromkeys(panel.metric for panel in result.panels))
    rows = list(dict.fromkeys((b.setting, b.arm) for b in result.budgets))
    several, settings = len(datasets) > 1, len({setting for setting, _ in rows}) > 1
    ranks = ["rank"] if result.ranks_differ else []
    header = ["method", *(["setting"] if settings else []), *ranks, "parameters", "diverged"]
    for dataset in datasets:
        prefix = f"{dataset}: " if several else ""
        header.append(f"{prefix}lr")
        header += [part for metric in metrics for part in (f"{prefix}{metric}", "Δ to best")]
    body = tuple(_line(result, row, datasets, metrics, settings) for row in rows)
    bases = {c.to_best.basis for p in result.panels for c in p.cells if c.to_best}
    paired = "Δ to best: mean paired difference" + "".join(_SPEAKS_OF[basis] for basis in sorted(bases)) + "."
    runs = f"Runs: {len(result.ids)}, their ids in the side file."
    return Sheet(tuple(header), body, (*result.notes, *([paired] if bases else []), runs))


def _line(
    result: ResultTable, row: tuple[str, str], datasets: list[str], metrics: list[str], settings: bool
) -> tuple[Entry, ...]:
    setting, arm = row
    own = [b for b in result.budgets if (b.setting, b.arm) == row]
    size = own[0].trainable_parameters
    share = ", ".join(dict.fromkeys(b.diverged_share for b in own))
    line = [Entry(arm), *([Entry(setting)] if settings else [])]
    line += [Entry(", ".join(dict.fromkeys(b.rank for b in own)))] if result.ranks_differ else []
    line += [Entry("" if math.isnan(size) else f"{size:,.0f}"), Entry(share)]
    cells = {(p.dataset, p.metric): c for p in result.panels if p.setting == setting for c in p.cells if c.arm == arm}
    for dataset in datasets:
        found = next((cells[dataset, m] for m in metrics if (dataset, m) in cells), None)
        line.append(Entry(f"{found.lr:g}" if found else ""))
        for metric in metrics:
            line += _entries(cells.get((dataset, metric)))
    return tuple(line)


def _entries(cell: Cell | None) -> list[Entry]:
    if cell is None:
        return [Entry(""), Entry("")]
    pair = cell.to_best
    interval = f" [{pair.low:+.3f}, {pair.high:+.3f}]" if pair and not math.isnan(pair.low) else ""
    reference = "best" if cell.best else "reference" if cell.reference else ""
    difference = f"{pair.difference:+.3f}{interval}" if pair else reference
    return [Entry(number(cell), cell.best or cell.tied), Entry(difference)]
