"""A measure along the layers, or over the kinds of module, one line or row of marks per arm."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ablora_analysis.figures.measured import ordered, short, strict_mean
from ablora_analysis.figures.style import Look

_MOST_TICKS = 12


class Line(NamedTuple):
    """One arm; the tuples run over the panel's places. NaN is a gap."""

    arm: str
    mean: tuple[float, ...]
    """Over seeds, of each seed's mean over modules."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """The least and the greatest seed."""
    seeds: int


class Places(NamedTuple):
    """What a panel's x axis stands for."""

    axis: str
    """`layer` or `kind`"""
    values: tuple[int | str, ...]
    labels: tuple[str, ...]


def places(rows: pd.DataFrame, axis: str) -> Places:
    """The layers in ascending order (a module outside them has -1), or the kinds as a block applies them."""
    if axis == "kind":
        kinds = ordered(rows["kind"])
        return Places(axis, tuple(kinds), tuple(map(short, kinds)))
    layers = sorted({int(layer) for layer in rows["layer"]})
    return Places(axis, tuple(layers), tuple("none" if layer < 0 else str(layer) for layer in layers))


def lines(rows: pd.DataFrame, at: Places, value: str, arms: Sequence[str]) -> tuple[Line, ...]:
    """One line per arm that has rows. A seed's place is NaN where any of its modules there is undefined, and an arm's
    where any of its seeds is."""
    by_seed = strict_mean(rows, ["arm", at.axis, "seed"], value)
    out = []
    for arm in arms:
        if arm not in by_seed.index.get_level_values("arm"):
            continue
        table = by_seed.xs(arm, level="arm").unstack("seed").reindex(list(at.values))
        mean, low, high = (
            table.mean(axis=1, skipna=False),
            table.min(axis=1, skipna=False),
            table.max(axis=1, skipna=False),
        )
        out.append(Line(arm, tuple(mean), tuple(low), tuple(high), table.shape[1]))
    return tuple(out)


def draw(ax: Axes, at: Places, found: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """Layers: lines with a band from the least to the greatest seed. Kinds: marks side by side with the same span."""
    connected, x = at.axis == "layer", range(len(at.values))
    step = -(-len(at.values) // _MOST_TICKS) if connected else 1
    for index, line in enumerate(found):
        look, spread = looks[line.arm], 0.7 if not connected else 0.25 if step == 1 else 0.0
        size = 5.0 if look.marker == "*" else 3.4
        moved = [place + spread * ((index + 0.5) / len(found) - 0.5) for place in x]
        if connected:
            ax.fill_between(moved, line.low, line.high, color=look.colour, alpha=0.18, linewidth=0)
            ax.plot(moved, line.mean, color=look.colour, marker=look.marker, markersize=size,
                    markevery=(index % step, step))  # fmt: skip
        else:
            ax.vlines(moved, line.low, line.high, color=look.colour, linewidth=1.0)
            ax.plot(moved, line.mean, color=look.colour, marker=look.marker, markersize=size, linestyle="none")
    ax.set_xticks(list(x)[::step], at.labels[::step])
    ax.set_xlim(-0.5, len(at.values) - 0.5)
    if not connected:
        for place in list(x)[1:]:
            ax.axvline(place - 0.5, color="#DDDDDD", linewidth=0.4, zorder=0)
        ax.tick_params(axis="x", length=0)
    ax.set_xlabel("layer" if connected else "kind of module")
