"""Method × data set: each arm at its chosen learning rate, the difference to the best with its paired interval, ties.

An arm is ranked (may be the best, may be tied) with three seeds or more, none of them diverged, and a learning rate
that is not on the border of the range tried. One that is not ranked is shown with its reason. Where no arm has three
seeds, differences are taken to the best mean, but nothing is called best.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ablora.spec import BadInput
from ablora_analysis import stats
from ablora_analysis.figures import arms, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.style import Look
from ablora_analysis.table import metrics_of


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
    """Empty, or the reason: "edge" (of the learning rates), "diverged", "seeds" (fewer than the others have)."""


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
    trainable_parameters: float
    adapter_bytes: float
    diverged_share: str


class ResultTable(NamedTuple):
    panels: tuple[Panel, ...]
    budgets: tuple[Budget, ...]
    notes: tuple[str, ...]
    ids: tuple[str, ...]


def shown_metrics(prepared: pd.DataFrame) -> list[str]:
    """What a table reports: the metrics of the evaluations; the training loss only where there is nothing else, and
    never the validation split, which chose the learning rates."""
    found = [name for name in metrics_of(prepared) if prepared[name].notna().any()]
    kept = [name for name in found if name != "train_loss_nats" and not name.startswith("validation_")]
    return kept or found


def points(prepared: pd.DataFrame, choices: Sequence[Choice], items: Mapping[str, pd.DataFrame]) -> ResultTable:
    """The table's numbers. `items` has for a metric the rows `id`, `item`, `value` (and `weight`); a metric without
    items is paired on seeds alone."""
    metrics = shown_metrics(prepared)
    panels = [
        _panel(prepared, [c for c in choices if (c.setting, c.dataset) == key], key, metric, items.get(metric))
        for key in arms.panels(choices)
        for metric in metrics
    ]
    runs = prepared.set_index("id")
    budgets = tuple(_budget(choice, runs) for choice in choices)
    notes = [*arms.notes(prepared, choices), *_notes(panels), *_budget_notes(budgets), *_item_notes(metrics, items)]
    return ResultTable(tuple(panels), budgets, tuple(notes), tuple(sorted({run for c in choices for run in c.ids})))


def _panel(
    prepared: pd.DataFrame, choices: Sequence[Choice], key: tuple[str, str], metric: str, items: pd.DataFrame | None
) -> Panel:
    values = prepared.drop_duplicates("id").set_index("id")[metric]
    finite = {c.arm: [r for r in c.ids if math.isfinite(values[r])] for c in choices}
    shown = [c for c in choices if finite[c.arm]]
    most = max((len(finite[c.arm]) for c in shown), default=0)
    reasons = {c.arm: _not_ranked(c, len(finite[c.arm]), min(3, most)) for c in shown}
    scores = {c.arm: _scores(c, finite[c.arm], values, items) for c in shown if not reasons[c.arm]}
    refused, ties = "", None
    try:
        ties = stats.tied_with_best(scores, style.lower_is_better(metric)) if len(scores) > 1 else None
    except BadInput as error:
        refused = str(error)
    means = {c.arm: _mean(c, finite[c.arm], values, items) for c in shown}
    cells = tuple(_cell(c, means[c.arm], ties, reasons[c.arm]) for c in shown)
    seeds = tuple(sorted({len(finite[c.arm]) for c in shown}))
    return Panel(*key, metric, cells, _detectable(ties), seeds, refused)


def _not_ranked(choice: Choice, num_seeds: int, wanted: int) -> str:
    if choice.diverged:
        return "diverged"
    if num_seeds < wanted:
        return "seeds"
    return "edge" if choice.edge else ""


def _scores(choice: Choice, ids: Sequence[str], values: pd.Series, items: pd.DataFrame | None) -> pd.DataFrame:
    seeds = dict(zip(choice.ids, choice.seeds))
    if items is None:
        return pd.DataFrame({"seed": [seeds[r] for r in ids], "item": "run", "value": [values[r] for r in ids]})
    own = items[items["id"].isin(ids)]
    return own.assign(seed=own["id"].map(seeds))


def _mean(choice: Choice, ids: Sequence[str], values: pd.Series, items: pd.DataFrame | None) -> stats.Summary:
    """Over seeds; of one seed over its items. The mean is the one that the runs report."""
    score = stats.summary(values[r] for r in ids)
    if len(ids) > 1 or items is None:
        return score
    own = stats.over_items(_scores(choice, ids, values, items))
    return own._replace(mean=score.mean)


def _cell(choice: Choice, score: stats.Summary, ties: stats.Ties | None, reason: str) -> Cell:
    if ties is None:
        return Cell(choice.arm, choice.method, choice.lr, score, None, math.nan, False, False, False, reason)
    pair, p = ties.against_best.get(choice.arm), ties.p_holm.get(choice.arm, math.nan)
    reference = ties.best == choice.arm
    tested = any(not math.isnan(p) for p in ties.p_holm.values())
    tied = choice.arm in ties.tied
    return Cell(choice.arm, choice.method, choice.lr, score, pair, p, reference, reference and tested, tied, reason)


def _detectable(ties: stats.Ties | None) -> float:
    """From the root mean square of the comparisons' standard deviations, and the fewest seeds of any."""
    if not ties or not ties.against_best:
        return math.inf
    found = list(ties.against_best.values())
    sd = math.sqrt(sum(result.sd**2 for result in found) / len(found))
    seeds = min(result.seeds for result in found)
    return stats.minimum_detectable_difference(sd, seeds, alpha=0.05 / len(found))


def _budget(choice: Choice, runs: pd.DataFrame) -> Budget:
    own = runs.loc[list(choice.ids)] if choice.ids else runs.iloc[:0]
    parameters, size = (float(own[n].astype("float64").mean()) for n in ("trainable_parameters", "adapter_bytes"))
    return Budget(choice.arm, choice.setting, choice.dataset, parameters, size, choice.diverged_share)


def _notes(panels: Sequence[Panel]) -> list[str]:
    seeds = sorted({n for panel in panels for n in panel.seeds})
    out = [f"Seeds: {' to '.join(map(str, sorted({seeds[0], seeds[-1]})))}."] if seeds else []
    kinds = {cell.score.basis for panel in panels for cell in panel.cells}
    if "seeds" in kinds:
        out.append("Interval: 95 % t over seeds, on these items.")
    if "range" in kinds:
        out.append("Two seeds: their range, no test.")
    if kinds & {"items", "share"}:
        out.append("One seed: dashed 95 % interval over its items only, no test.")
    if "share" in kinds:
        out.append("[low, high] of a share: Wilson's.")
    if "none" in kinds:
        out.append("No interval: one seed whose items all agree, are fewer than three or not recorded.")
    reasons = {cell.not_ranked for panel in panels for cell in panel.cells}
    if "edge" in reasons:
        out.append("† best rate is the least or greatest tried: not ranked.")
    if "seeds" in reasons:
        out.append("§ fewer seeds than others: not ranked.")
    if "diverged" in reasons:
        out.append("‡ a seed diverged at this rate: mean of the others, not ranked.")
    if any(cell.best for panel in panels for cell in panel.cells):
        out.append("Bold: best, and tied with it (paired t over seeds, Holm, 0.05).")
    out += [f"Not compared ({axis(panel)}): {panel.refused}." for panel in panels if panel.refused]
    found: dict[str, list[float]] = {}
    for panel in panels:
        if math.isfinite(panel.detectable):
            found.setdefault(panel.metric, []).append(panel.detectable)
    spans = [f"{metric} {_span(values)}" for metric, values in found.items()]
    return [*out, *([f"Detectable difference at 80 % power: {', '.join(spans)}."] if spans else [])]


def _span(values: Sequence[float]) -> str:
    """One number, or the least and greatest of several panels, as printed with two digits."""
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))


def axis(panel: Panel) -> str:
    return ", ".join(part for part in (panel.metric, panel.dataset, panel.setting) if part)


def _budget_notes(budgets: Sequence[Budget]) -> list[str]:
    """A warning where arms that are compared differ by more than 5 % in trainable parameters."""
    out = []
    for key in dict.fromkeys((b.setting, b.dataset) for b in budgets):
        own = [b.trainable_parameters for b in budgets if (b.setting, b.dataset) == key]
        sizes = [size for size in own if size > 0]
        if sizes and max(sizes) > 1.05 * min(sizes):
            where = arms.panel_title(key[1], key[0])
            out.append(f"Unequal budgets ({where}): {min(sizes):,.0f} to {max(sizes):,.0f} trainable parameters.")
    return out


def _item_notes(metrics: Sequence[str], items: Mapping[str, pd.DataFrame]) -> list[str]:
    without = [name for name in metrics if name not in items]
    return [f"Without item records, paired on seeds alone: {', '.join(without)}."] if without else []


def draw(ax: Axes, panel: Panel, looks: Mapping[str, Look] | None = None) -> None:
    """A row per arm: its mean, its interval over seeds, the number, and a filled marker for the best and its ties."""
    looks = looks or style.looks(cell.arm for cell in panel.cells)
    rows = range(len(panel.cells))
    for y, cell in zip(rows, panel.cells):
        look, marked = looks[cell.arm], cell.best or cell.tied
        if not math.isnan(cell.score.low):
            line = (0, (2, 1.5)) if cell.score.basis in ("items", "share") else "solid"
            ax.plot([cell.score.low, cell.score.high], [y, y], color=look.colour, linewidth=1.2, linestyle=line)
        size = 6.5 if look.marker == "*" else 4.5
        ax.plot([cell.score.mean], [y], linestyle="none", marker=look.marker, markersize=size, markeredgewidth=0.9,
                markeredgecolor=look.colour, markerfacecolor=look.colour if marked else "white")  # fmt: skip
        ax.text(1.02, y, number(cell), transform=ax.get_yaxis_transform(), va="center", ha="left",
                fontsize=style.SMALL_PT, fontweight="bold" if marked else "normal")  # fmt: skip
    ax.set_yticks(list(rows), [label(cell.arm) for cell in panel.cells])
    ax.set_ylim(len(panel.cells) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", linewidth=0.3, color="#CCCCCC")
    ax.set_axisbelow(True)
    better = "lower" if style.lower_is_better(panel.metric) else "higher"
    ax.set_xlabel(f"{style.axis_title(panel.metric)}, {better} is better")


def number(cell: Cell) -> str:
    """The mean, its mark, and half its interval's width, or both ends where the interval is not symmetric."""
    mark = {"edge": "†", "diverged": "‡", "seeds": "§"}.get(cell.not_ranked, "")
    low, high, basis = cell.score.low, cell.score.high, cell.score.basis
    half = f" ±{(high - low) / 2:.3f}" if basis in ("seeds", "items") else ""
    ends = f" [{low:.3f}, {high:.3f}]" if basis == "share" else ""
    return f"{cell.score.mean:.3f}{mark}{half}{ends}"


def label(arm: str, longest: int = 16) -> str:
    """A long name over two lines, broken where it has a joint, so that it leaves the panel its room."""
    joints = [i for i in range(1, len(arm)) if arm[i - 1] in "_ ="] if len(arm) > longest else []
    if not joints:
        return arm
    at = min(joints, key=lambda i: abs(i - len(arm) / 2))
    return f"{arm[:at].rstrip()}\n{arm[at:]}"


def height_in(panel: Panel) -> float:
    """What a panel needs: its axis and title, and a row per arm, higher where any name takes two lines."""
    row = 0.27 if any("\n" in label(cell.arm) for cell in panel.cells) else 0.17
    return 0.5 + row * len(panel.cells)
