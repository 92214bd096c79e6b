"""What a reader must know of the result table's statistics, for its foot."""

import math
from collections.abc import Sequence

from ablora_analysis import stats
from ablora_analysis.figures import arms
from ablora_analysis.figures.result_rows import Budget, Panel

_BASIS = {
    "seeds": "Interval: 95 % t over seeds, on these items; the CSV has those for new items.",
    "range": "Two seeds: their range, no test.",
    "items": "One seed: dashed 95 % interval over its items only, no test.",
    "share": "[low, high] of a share: Wilson's.",
    "none": "No interval: seeds or items that all agree, or items too few or not recorded.",
}
_REASON = {
    "edge": "† best rate is the least or greatest tried: not ranked.",
    "seeds": "§ fewer seeds than others: not ranked.",
    "diverged": "‡ a seed diverged at this rate: mean of the others, not ranked.",
    "items": "¶ evaluated on other items than most: not ranked.",
}


def notes(panels: Sequence[Panel], budgets: Sequence[Budget], without_items: Sequence[str]) -> list[str]:
    """Short sentences: seeds, what intervals speak of, why arms are not ranked, what the design can show."""
    seeds = sorted({n for panel in panels for n in panel.seeds})
    cells = [cell for panel in panels for cell in panel.cells]
    kinds = {"items" if basis == "share" else basis for basis in (cell.score.basis for cell in cells)}
    kinds |= {cell.score.basis for cell in cells}
    reasons = {cell.not_ranked for cell in cells}
    out = [f"Seeds: {_between(seeds)}."] if seeds else []
    out += [text for basis, text in _BASIS.items() if basis in kinds]
    out += [text for reason, text in _REASON.items() if reason in reasons]
    if any(cell.best for cell in cells):
        out.append("Bold: best, and tied with it (paired t over seeds, Holm, 0.05).")
    out += [f"Not compared ({axis(panel)}): {panel.refused}." for panel in panels if panel.refused]
    out += [*_design(panels), *_budgets(budgets)]
    return [*out, *([f"Paired on seeds alone, no item records: {', '.join(without_items)}."] if without_items else [])]


def _design(panels: Sequence[Panel]) -> list[str]:
    """The smallest detectable difference and the smallest p, of the least and most seeds that any panel compares."""
    found: dict[str, list[float]] = {}
    for panel in panels:
        if math.isfinite(panel.detectable):
            found.setdefault(panel.metric, []).append(panel.detectable)
    if not found:
        return []
    spans = ", ".join(f"{metric} {_span(values)}" for metric, values in found.items())
    pairs = [cell.to_best.seeds for panel in panels for cell in panel.cells if cell.to_best]
    least = _span([stats.smallest_p(n) for n in pairs if n > 2])
    return [f"Detectable difference at 80 % power: {spans}; least permutation p: {least}."]


def _span(values: Sequence[float]) -> str:
    """One number, or the least and greatest of several panels, as printed with two digits."""
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))


def _between(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, sorted({numbers[0], numbers[-1]})))


def axis(panel: Panel) -> str:
    """A panel's metric, data set and setting in words."""
    return ", ".join(part for part in (panel.metric, panel.dataset, panel.setting) if part)


def _budgets(budgets: Sequence[Budget]) -> list[str]:
    """A warning where arms that are compared differ by more than 5 % in trainable parameters."""
    out = []
    for key in dict.fromkeys((b.setting, b.dataset) for b in budgets):
        own = [b.trainable_parameters for b in budgets if (b.setting, b.dataset) == key]
        sizes = [size for size in own if size > 0]
        if sizes and max(sizes) > 1.05 * min(sizes):
            where = arms.panel_title(key[1], key[0])
            out.append(f"Unequal budgets ({where}): {min(sizes):,.0f} to {max(sizes):,.0f} trainable parameters.")
    return out
