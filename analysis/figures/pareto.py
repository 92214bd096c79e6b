"""Learning against forgetting: answer loss over the KL from the base, each arm's way there and where it ends."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ablora_analysis import stats, table
from ablora_analysis.figures import arms, result_table, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.front import dominated, front_of
from ablora_analysis.figures.result_table import Cell
from ablora_analysis.figures.study import Study, chosen_items, paint_panels
from ablora_analysis.figures.style import Look
from ablora_analysis.table import metrics_of

FORGOT, LEARNT = "forgetting_kl_nats", "answer_loss_nats"
ZERO = 1e-6
"""A KL below this is drawn as the base's: float32 sums of it are not exact beyond."""


class Way(NamedTuple):
    """One arm at its chosen rate. Both measures are better low; paths run over the evaluations that all seeds have."""

    setting: str
    dataset: str
    arm: str
    steps: tuple[int, ...]
    forgot: tuple[float, ...]
    """Mean over seeds of the KL at each step, nats per token."""
    learnt: tuple[float, ...]
    """Mean over seeds of the answer loss at each step, nats per token."""
    seeds: tuple[tuple[float, float], ...]
    """(KL, answer loss) of each finished run."""
    final_forgot: stats.Summary
    final_learnt: stats.Summary
    not_ranked: str
    """As in the result table; such an arm is no part of the front."""
    front: bool
    dominated_by: tuple[str, ...]
    """The arms that are better in both measures, tested."""
    ids: tuple[str, ...]


def points(
    prepared: pd.DataFrame, choices: Sequence[Choice], items: Mapping[str, pd.DataFrame], records: pd.DataFrame
) -> list[Way]:
    """One way per arm that has both measures. `items` as in the result table, `records` is `table.curves`."""
    if not {FORGOT, LEARNT} <= set(metrics_of(prepared)):
        return []
    result = result_table.points(prepared, choices, items, [FORGOT, LEARNT])
    cells = {(p.setting, p.dataset, p.metric, cell.arm): cell for p in result.panels for cell in p.cells}
    values = prepared.drop_duplicates("id").set_index("id")[[FORGOT, LEARNT]]
    out = []
    for key in arms.panels(choices):
        own = [c for c in choices if (c.setting, c.dataset) == key]
        found = {c.arm: (cells[*key, FORGOT, c.arm], cells[*key, LEARNT, c.arm]) for c in own
                 if (*key, FORGOT, c.arm) in cells and (*key, LEARNT, c.arm) in cells}  # fmt: skip
        ranked = {arm: both for arm, both in found.items() if not any(cell.not_ranked for cell in both)}
        front = front_of({arm: (x.score.mean, y.score.mean) for arm, (x, y) in ranked.items()})
        behind = dominated([c for c in own if c.arm in ranked], ranked, values, items)
        out += [_way(c, found[c.arm], values, records, c.arm in front, behind.get(c.arm, ()))
                for c in own if c.arm in found]  # fmt: skip
    return out


def _way(
    choice: Choice, cells: tuple[Cell, Cell], values: pd.DataFrame, records: pd.DataFrame, front: bool,
    dominated_by: tuple[str, ...],
) -> Way:  # fmt: skip
    path = _path(choice, records)
    seeds = values.loc[list(choice.ids)].dropna()
    reason = next((cell.not_ranked for cell in cells if cell.not_ranked), "")
    return Way(
        choice.setting, choice.dataset, choice.arm, tuple(int(s) for s in path.index), tuple(path[FORGOT]),
        tuple(path[LEARNT]), tuple(zip(seeds[FORGOT], seeds[LEARNT])), cells[0].score, cells[1].score, reason, front,
        dominated_by, tuple(sorted(seeds.index)),
    )  # fmt: skip


def _path(choice: Choice, records: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds by step, at the steps at which every seed has both measures."""
    own = records[records["id"].isin(choice.ids) & records["metric"].isin([FORGOT, LEARNT])]
    last = own.drop_duplicates(["id", "step", "metric"], keep="last")
    by_run = last.pivot(index=["step", "id"], columns="metric", values="value").reindex(columns=[FORGOT, LEARNT])
    steps = by_run.dropna().groupby(level="step")
    return steps.mean()[steps.size() == own["id"].nunique()] if len(own) else by_run.groupby(level="step").mean()


class _Frame(NamedTuple):
    """The limits of a panel."""

    log: bool
    left: float
    right: float
    bottom: float
    top: float
    """Both infinite where everything fits."""


def draw(ax: Axes, ways: Sequence[Way], looks: Mapping[str, Look] | None = None) -> None:
    """Paths with a dot per evaluation, seeds as small marks, means with intervals in both directions, and the front.

    Filled: not dominated. On a logarithmic axis the base, whose KL is 0, stands on the left border.
    """
    looks = looks or style.looks(way.arm for way in ways)
    frame = _frame(ways)
    ax.set_xlim(frame.left, frame.right)
    if frame.log:
        ax.set_xscale("log")
        ticks = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5) if frame.left <= m * 10.0**e <= frame.right]
        ticks = ticks if len(ticks) < 8 else [tick for tick in ticks if f"{tick:e}".startswith("1")]
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    for way in ways:
        look = looks[way.arm]
        x = [max(value, frame.left) for value in way.forgot]
        ax.plot(x, way.learnt, color=look.colour, linewidth=0.7, alpha=0.55, marker=".", markersize=2.5)
        for forgot, learnt in way.seeds:
            ax.plot([forgot], [learnt], color=look.colour, marker=look.marker, markersize=2.2, alpha=0.55,
                    linestyle="none", markeredgewidth=0)  # fmt: skip
        _mean(ax, way, look)
    _front(ax, ways, frame)
    if math.isfinite(frame.top):
        ax.set_ylim(frame.bottom, frame.top)
    _base(ax, ways, frame)
    ax.set_xlabel(style.axis_title(FORGOT))
    ax.set_ylabel(style.axis_title(LEARNT).replace(" (", "\n("))


def _mean(ax: Axes, way: Way, look: Look) -> None:
    x, y = way.final_forgot, way.final_learnt
    if not math.isnan(x.low):
        ax.plot([x.low, x.high], [y.mean, y.mean], color=look.colour, linewidth=1.0)
    if not math.isnan(y.low):
        ax.plot([x.mean, x.mean], [y.low, y.high], color=look.colour, linewidth=1.0)
    filled = not way.dominated_by and not way.not_ranked
    ax.plot([x.mean], [y.mean], linestyle="none", marker=look.marker, markersize=7 if look.marker == "*" else 5.5,
            markeredgecolor=look.colour, markeredgewidth=0.9, markerfacecolor=look.colour if filled else "white",
            zorder=3)  # fmt: skip


def _front(ax: Axes, ways: Sequence[Way], frame: _Frame) -> None:
    """From each mean on the front straight to the right, then down to the next; what lies above it is behind it."""
    on = sorted((way.final_forgot.mean, way.final_learnt.mean) for way in ways if way.front)
    if not on:
        return
    ax.set_ylim(ax.get_ylim())
    x = [on[0][0], *(x for x, _ in on), frame.right]
    y = [ax.get_ylim()[1], *(y for _, y in on), on[-1][1]]
    ax.plot(x, y, drawstyle="steps-post", color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)


def _base(ax: Axes, ways: Sequence[Way], frame: _Frame) -> None:
    found = [way.learnt[0] for way in ways if way.steps[:1] == (0,) and way.forgot[0] <= ZERO]
    if not found:
        return
    loss, x = sum(found) / len(found), frame.left if frame.log else 0.0
    above = loss > frame.top
    ax.plot([x], [min(loss, frame.top)], marker="^" if above else "D", color=style.BLACK, markersize=4,
            linestyle="none", clip_on=False, zorder=4)  # fmt: skip
    if above:
        ax.set_title(f"▲ base: {loss:.2f}", loc="right", fontsize=style.SMALL_PT)
    else:
        ax.annotate(f"base: {loss:.2f}", (x, loss), xytext=(5, 2), textcoords="offset points", fontsize=style.SMALL_PT)


def _frame(ways: Sequence[Way]) -> _Frame:
    """Logarithmic where the KLs that are shown, other than the base's, span more than a decade."""
    bottom, top = _heights(ways)
    ends = [x for way in ways for x in (*(s[0] for s in way.seeds), *_ends(way.final_forgot)) if x > ZERO]
    found = [*(x for way in ways for x, y in zip(way.forgot, way.learnt) if x > ZERO and y <= top), *ends]
    if not found:
        return _Frame(False, 0.0, 1.0, bottom, top)
    log = max(found) > 10 * min(found)
    left = min(found) / 1.5 if log else -0.03 * max(found)
    return _Frame(log, left, max(found) * (1.25 if log else 1.08), bottom, top)


def _heights(ways: Sequence[Way]) -> tuple[float, float]:
    """The ends have a third of the panel at least: the fall from the base would leave no room for their differences."""
    ends = [y for way in ways for y in (*(s[1] for s in way.seeds), *_ends(way.final_learnt)) if math.isfinite(y)]
    spread = max(ends) - min(ends)
    bottom, top = min(ends) - 0.15 * spread, max(ends) + 2 * spread
    cut = spread > 0 and any(y > top for way in ways for y in way.learnt)
    return (bottom, top) if cut else (-math.inf, math.inf)


def _ends(score: stats.Summary) -> tuple[float, ...]:
    return tuple(x for x in (score.low, score.mean, score.high) if not math.isnan(x))


_BARS = {
    "seeds": "95 % t over seeds", "range": "the range of two seeds", "items": "95 % over one seed's items",
    "share": "95 % over one seed's items", "none": "",
}  # fmt: skip
_REASONS = {
    "edge": "best rate on the border of those tried", "diverged": "a seed diverged", "seeds": "fewer seeds",
    "items": "other items",
}  # fmt: skip


def notes(ways: Sequence[Way]) -> list[str]:
    """What the ink means, for the foot."""
    frames = [_frame(own) for own in _by_panel(ways).values()]
    left = ", at the left border" if any(frame.log for frame in frames) else ""
    above = "; ▲: it lies above the axis" if any(math.isfinite(frame.top) for frame in frames) else ""
    bases = {score.basis for way in ways for score in (way.final_forgot, way.final_learnt)}
    bars = " and ".join(dict.fromkeys(words for basis, words in _BARS.items() if basis in bases and words))
    out = [f"Line: mean of the seeds at each evaluation, from the base (KL of 0{left}{above}).",
           f"Large: mean at the end{f'; bars: {bars}' if bars else ''}; small: its seeds."]  # fmt: skip
    if any(way.front for way in ways):
        out.append("Dashed: Pareto front of the means.")
    if any(way.dominated_by for way in ways):
        out.append("Hollow: dominated, another being better in both (paired t over seeds, Holm, 0.05).")
    elif max(len(way.seeds) for way in ways) < 3:
        out.append("No test below three seeds.")
    else:
        out.append("No method is shown to be dominated (better in both: paired t over seeds, Holm, 0.05).")
    for reason in sorted({way.not_ranked for way in ways if way.not_ranked}):
        names = ", ".join(dict.fromkeys(way.arm for way in ways if way.not_ranked == reason))
        out.append(f"Hollow, not ranked: {names} ({_REASONS[reason]}).")
    return out


def _by_panel(ways: Sequence[Way]) -> dict[tuple[str, str], list[Way]]:
    keys = dict.fromkeys((way.setting, way.dataset) for way in ways)
    return {key: [way for way in ways if (way.setting, way.dataset) == key] for key in keys}


def paint(study: Study) -> list[Path]:
    """A panel per data set and setting; nothing where no run measured forgetting."""
    ids = sorted({run for choice in study.choices for run in choice.ids})
    records = table.curves(study.roots, ids, [FORGOT, LEARNT])
    items = chosen_items(study.roots, study.choices, [FORGOT, LEARNT])
    ways = points(study.prepared, study.choices, items, records)
    if not ways:
        return []
    foot = [*notes(ways), *arms.notes(study.prepared, study.choices)]
    if missing := _missing(ways, study.choices):
        foot.append(f"Without both measures: {', '.join(missing)}.")
    return paint_panels(study, "pareto", _by_panel(ways), draw, 2.35, foot)


def _missing(ways: Sequence[Way], choices: Sequence[Choice]) -> list[str]:
    shown = {(way.setting, way.dataset, way.arm) for way in ways}
    return list(dict.fromkeys(choice.arm for choice in choices if choice.ids and choice[:3] not in shown))
