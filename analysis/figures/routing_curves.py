"""How even a mixture's routing stays while it trains: balance loss, entropy, and the largest load of any expert."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from ablora_analysis import table
from ablora_analysis.figures import arms, style, training_curves
from ablora_analysis.figures.study import Study, paint_panels
from ablora_analysis.figures.style import Look
from ablora_analysis.figures.training_curves import Curve

BALANCE = "routing_balance"
METRICS = (BALANCE, "routing_entropy_nats", "routing_max_load")


def draw(ax: Axes, curves: Sequence[Curve], looks: Mapping[str, Look] | None = None) -> None:
    """Lines with bands over the whole run; for the balance loss a dotted line where it is least when balanced."""
    training_curves.draw(ax, curves, looks)
    ax.set_ylim(auto=True)
    ax.relim()
    ax.autoscale(axis="y")
    if curves[0].metric == BALANCE:
        ax.axhline(1.0, color=style.BLACK, linewidth=0.8, linestyle=":")


def notes(curves: Sequence[Curve]) -> list[str]:
    """What lines are, for the foot."""
    seeds = sorted({curve.seeds for curve in curves})
    span = " to ".join(dict.fromkeys(str(n) for n in (seeds[0], seeds[-1])))
    band = f"Line: mean of {span} seeds; band: least to greatest." if seeds[-1] > 1 else "One seed."
    return [band, "Means over modules, the largest load that of any module. Dotted: balanced."]


def paint(study: Study) -> list[Path]:
    """A panel per metric, data set and setting; nothing for a study without mixtures."""
    ids = sorted({run for choice in study.choices for run in choice.ids})
    records = table.curves(study.roots, ids, METRICS)
    # A run that diverged has its cross in the training curves.
    choices = [choice._replace(diverged=()) for choice in study.choices]
    found = [curve for metric in METRICS for curve in training_curves.points(choices, records, metric)]
    if not found:
        return []
    keys = [(*key, metric) for metric in METRICS for key in arms.panels(study.choices)]
    shown = {key: own for key in keys if (own := [c for c in found if (c.setting, c.dataset, c.metric) == key])}
    return paint_panels(
        study, "routing_curves", shown, draw, 1.4, [*notes(found), *arms.notes(study.prepared, choices)]
    )
