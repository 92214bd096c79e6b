"""A figure's paper: panels at a column's width with a legend and a foot, saved so that equal content is equal bytes."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablora.store.atomic import replace, write_json
from ablora_analysis.figures import style

_WIDE_FROM = 4


def sheet(heights_in: Sequence[float], foot: str, legend: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    """Panels one below the other in one column, or in two columns from five panels on. Call inside `rc`."""
    columns = 2 if len(heights_in) > _WIDE_FROM else 1
    rows = -(-len(heights_in) // columns)
    tall = [max(heights_in[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure, axes = page(tall, columns, style.COLUMN_IN * columns, foot, legend)
    for spare in axes[len(heights_in) :]:
        spare.set_axis_off()
    return figure, axes[: len(heights_in)]


def page(
    tall_in: Sequence[float], columns: int, width_in: float, foot: str, legend: Mapping[str, Any]
) -> tuple[Figure, list[Axes]]:
    """Rows of `tall_in` with `columns` panels each, row after row in the list. Call inside `rc`."""
    wrapped = textwrap.fill(foot, int(width_in * 72 / (style.SMALL_PT * 0.55)))
    legend_rows = -(-len(legend) // _legend_columns(legend, width_in)) if legend else 0
    line_in = style.SMALL_PT * 1.35 / 72
    height = sum(tall_in) + line_in * (wrapped.count("\n") + 1.5 + legend_rows)
    figure = Figure(figsize=(width_in, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(tall_in), columns, squeeze=False, height_ratios=tall_in).flatten().tolist()
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=style.SMALL_PT, color="#444444", linespacing=1.25)
    if legend:
        columns = _legend_columns(legend, width_in)
        figure.legend(list(legend.values()), list(legend), loc="outside upper center", ncols=columns)
    return figure, axes


def _legend_columns(legend: Mapping[str, Any], width_in: float) -> int:
    """As many as fit: a handle and its gaps take about 0.4 in, a letter 0.057 in."""
    longest = max(len(name) for name in legend)
    return max(1, min(len(legend), int(width_in / (0.4 + 0.057 * longest))))


def save(figure: Figure, stem: Path, ids: Sequence[str], side: Mapping[str, Any]) -> list[Path]:
    """STEM.pdf, .svg, .png with the runs' ids in their metadata, and STEM.json with the ids and what `side` says.

    No date, no version of the program, no random id is written: equal content is equal bytes.
    """
    words = "ablora runs: " + " ".join(ids)
    kinds: dict[str, Mapping[str, Any]] = {
        "pdf": {"Keywords": words, "CreationDate": None, "Creator": "ablora", "Producer": None},
        "svg": {"Keywords": ["ablora runs", *ids], "Date": None, "Creator": "ablora"},
        "png": {"Keywords": words, "Software": None},
    }
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once per format: three times as fast, and all formats agree
    out = []
    for kind, metadata in kinds.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        replace(path, _writer(figure, kind, metadata), durable=False)
        out.append(path)
    path = stem.with_name(f"{stem.name}.json")
    write_json(path, {"schema": 1, "runs": list(ids), **side})
    return [*out, path]


def _writer(figure: Figure, kind: str, metadata: Mapping[str, Any]) -> Callable[[Path], None]:
    def write(aside: Path) -> None:
        figure.savefig(aside, format=kind, metadata=dict(metadata))

    return write


def rc() -> Any:
    """The style, for a `with` around making and saving a figure: matplotlib's defaults, not the user's own settings."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    # Any: the settings' names are a type of their own in newer matplotlib, and 3.9 has none to import.
    wanted: dict[Any, Any] = {**defaults, **style.RC}
    return rc_context(wanted)
