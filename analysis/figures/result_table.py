"""Method × data set: each arm at its chosen learning rate, the difference to the best with its paired interval, ties.

An arm is ranked (may be the best, may be tied) with three seeds or more, none of them diverged, the evaluation items
of most arms, and a learning rate that is not on the border of the range tried. One that is not ranked is shown with its
reason. Where no arm has three seeds, differences are taken to the best mean, but nothing is called best.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from ablora.spec import BadInput
from ablora_analysis import stats
from ablora_analysis.figures import arms, robustness, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.result_notes import notes
from ablora_analysis.figures.result_rows import Budget, Cell, Panel, ResultTable
from ablora_analysis.figures.robustness import Robustness
from ablora_analysis.figures.style import Look
from ablora_analysis.table import metrics_of

__all__ = ["Budget", "Cell", "Panel", "ResultTable", "draw", "height_in", "label", "number", "points", "shown_metrics"]


_ELSEWHERE = {
    "train_loss_nats", "forgetting_nats", "forgetting_floor_nats", "text_loss_nats", "base_text_loss_nats",
    "top1_agreement",
}  # fmt: skip
"""Shown by the training curves and the forgetting table."""


def shown_metrics(prepared: pd.DataFrame) -> list[str]:
    """What a table reports: the metrics of the task, and of forgetting the KL alone; the training loss only where there
    is nothing else, and never the validation split, which chose the learning rates."""
    found = [name for name in metrics_of(prepared) if prepared[name].notna().any()]
    aside = ("validation_", "routing_", "alignment_", "train_alignment_")
    kept = [name for name in found if name not in _ELSEWHERE and not name.startswith(aside)]
    return kept or found


def points(
    prepared: pd.DataFrame,
    choices: Sequence[Choice],
    items: Mapping[str, pd.DataFrame],
    metrics: Sequence[str] | None = None,
) -> ResultTable:
    """The table's numbers, of `shown_metrics` or those named. `items` has for a metric the rows `id`, `item`, `value`
    (and `weight`); a metric without items is paired on seeds alone."""
    metrics = metrics or shown_metrics(prepared)
    panels = [
        _panel(prepared, [c for c in choices if (c.setting, c.dataset) == key], key, metric, items.get(metric))
        for key in arms.panels(choices)
        for metric in metrics
    ]
    runs = prepared.set_index("id")
    budgets = tuple(_budget(choice, runs, robustness.of(prepared, choice)) for choice in choices)
    foot = [*arms.notes(prepared, choices), *notes(panels, budgets, [name for name in metrics if name not in items])]
    return ResultTable(tuple(panels), budgets, tuple(foot), tuple(sorted({run for c in choices for run in c.ids})))


def _panel(
    prepared: pd.DataFrame, choices: Sequence[Choice], key: tuple[str, str], metric: str, items: pd.DataFrame | None
) -> Panel:
    values = prepared.drop_duplicates("id").set_index("id")[metric]
    finite = {c.arm: [r for r in c.ids if math.isfinite(values[r])] for c in choices}
    shown = [c for c in choices if finite[c.arm]]
    most = max((len(finite[c.arm]) for c in shown), default=0)
    reasons = {c.arm: _not_ranked(c, len(finite[c.arm]), min(3, most)) for c in shown}
    ranked = {c.arm: _scores(c, finite[c.arm], values, items) for c in shown if not reasons[c.arm]}
    reasons |= dict.fromkeys(odd := _on_other_items(ranked), "items")
    scores = {arm: own for arm, own in ranked.items() if arm not in odd}
    refused, ties = "", None
    try:
        ties = stats.tied_with_best(scores, style.lower_is_better(metric)) if len(scores) > 1 else None
    except BadInput as error:
        refused = str(error)
    means = {c.arm: _mean(c, finite[c.arm], values, items) for c in shown}
    cells = tuple(_cell(c, means[c.arm], ties, reasons[c.arm], scores) for c in shown)
    seeds = tuple(sorted({len(finite[c.arm]) for c in shown}))
    return Panel(*key, metric, cells, _detectable(ties), seeds, refused)


def _not_ranked(choice: Choice, num_seeds: int, wanted: int) -> str:
    if choice.diverged:
        return "diverged"
    if num_seeds < wanted:
        return "seeds"
    return "edge" if choice.edge else ""


def _on_other_items(scores: Mapping[str, pd.DataFrame]) -> list[str]:
    """The arms whose items or weights are not those of the most arms; none where no set of items has the most."""
    sets = {arm: _items_of(own) for arm, own in scores.items()}
    counted = Counter(sets.values()).most_common(2)
    if len(counted) < 2 or counted[0][1] == counted[1][1]:
        return []
    return [arm for arm, own in sets.items() if own != counted[0][0]]


def _items_of(own: pd.DataFrame) -> frozenset[tuple[object, ...]]:
    return frozenset(zip(own["item"], own["weight"] if "weight" in own else [1.0] * len(own)))


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


def _cell(
    choice: Choice, score: stats.Summary, ties: stats.Ties | None, reason: str, scores: Mapping[str, pd.DataFrame]
) -> Cell:
    if ties is None:
        return Cell(choice.arm, choice.method, choice.lr, score, None, math.nan, False, False, False, reason)
    arm = choice.arm
    pair, p, flips = ties.against_best.get(arm), ties.p_holm.get(arm, math.nan), ties.p_permutation.get(arm, math.nan)
    reference = ties.best == arm
    tested = any(not math.isnan(p) for p in ties.p_holm.values())
    resampled = _bootstrap(scores[arm], scores[ties.best]) if pair else (math.nan, math.nan)
    return Cell(arm, choice.method, choice.lr, score, pair, p, reference, reference and tested, arm in ties.tied,
                reason, flips, resampled)  # fmt: skip


def _bootstrap(own: pd.DataFrame, best: pd.DataFrame) -> tuple[float, float]:
    try:
        found = stats.bootstrap(own, best)
    except BadInput:  # too few seeds or items for it
        return math.nan, math.nan
    return found.low, found.high


def _detectable(ties: stats.Ties | None) -> float:
    """From the root mean square of the comparisons' standard deviations, and the fewest seeds of any."""
    if not ties or not ties.against_best:
        return math.inf
    found = list(ties.against_best.values())
    sd = math.sqrt(sum(result.sd**2 for result in found) / len(found))
    design = stats.design_power(min(result.seeds for result in found), len(found))
    return design.detectable_sd * sd if math.isfinite(design.detectable_sd) else math.inf


def _budget(choice: Choice, runs: pd.DataFrame, robust: Robustness) -> Budget:
    own = runs.loc[list(choice.ids)] if choice.ids else runs.iloc[:0]
    parameters, size = (float(own[n].astype("float64").mean()) for n in ("trainable_parameters", "adapter_bytes"))
    rank = " to ".join(str(int(rank)) for rank in sorted(set(own["rank"].dropna())))
    return Budget(choice.arm, choice.setting, choice.dataset, rank, parameters, size, choice.diverged_share, robust)


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
    mark = {"edge": "†", "diverged": "‡", "seeds": "§", "items": "¶"}.get(cell.not_ranked, "")
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
