"""How alike two updates are: a matrix of methods with the seed-to-seed value on its diagonal, and full maps phi(i, j).

Both share one colour scale from 0 to 1, on which a random subspace's level is marked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ablora.store.atomic import write_text
from ablora_analysis.figures import measured, phi_pairs, sheet, style
from ablora_analysis.figures.measured import SIDES, Comparison
from ablora_analysis.figures.phi_pairs import Block, Cell
from ablora_analysis.figures.result_table import label
from ablora_analysis.figures.study import Study

COLOURS = "viridis"
_MOST_NARROW = 8
"""Rows of a matrix at a column's width, with numbers of 7 points."""


class Matrix(NamedTuple):
    """One side. Diagonal: seed to seed; below it: methods at unequal seeds; above it: at equal seeds."""

    side: str
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def null(self) -> float:
        """Mean over the cells of a random subspace's expectation."""
        found = [cell.level.null for cell in self.cells if cell.size]
        return sum(found) / len(found) if found else float("nan")


def points(found: Sequence[Block], arms: Sequence[str]) -> list[Matrix]:
    """A matrix per side, of the arms that have any pair of runs."""
    cells = phi_pairs.cells(found)
    held = {name for cell in cells for name in (cell.arm_a, cell.arm_b)}
    names = tuple(arm for arm in arms if arm in held)
    parts = {side: tuple(cell for cell in cells if cell.side == side) for side in SIDES}
    return [Matrix(side, names, own) for side, own in parts.items() if own]


def draw(ax: Axes, matrix: Matrix) -> AxesImage:
    """The cells with their values; the last row and column stand for random subspaces, with their one value."""
    size = len(matrix.arms) + 1
    values = np.full((size, size), np.nan)
    at = {arm: number for number, arm in enumerate(matrix.arms)}
    for cell in matrix.cells:
        a, b = at[cell.arm_a], at[cell.arm_b]
        row, column = (a, b) if cell.equal_seeds else (b, a)
        values[row, column] = cell.level.phi
        mark = "°" * cell.shared_start + "≈" * cell.as_between_seeds
        _write(ax, row, column, cell.level.phi, mark)
    values[-1, -1] = matrix.null
    _write(ax, size - 1, size - 1, matrix.null, "")
    image = ax.imshow(values, vmin=0, vmax=1, cmap=COLOURS)
    names = [*(label(arm) for arm in matrix.arms), "random"]
    ax.set_yticks(range(size), names)
    ax.set_xticks(range(size), names, rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _write(ax: Axes, row: int, column: int, value: float, mark: str) -> None:
    text = "–" if value != value else f"{value:.2f}" + (f"\n{mark}" if mark else "")
    ink = "black" if value != value or value > 0.5 else "white"
    ax.text(column, row, text, ha="center", va="center", fontsize=style.SMALL_PT, color=ink, linespacing=0.8)


def draw_map(ax: Axes, block: Block) -> AxesImage:
    """phi(i, j), i upwards; a dot where it is not above what random subspaces have, two standard deviations allowed."""
    kept = np.isfinite(block.phi)
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    at = np.ix_(rows, columns)
    values, random = block.phi[at], block.null[at] + 2 * block.null_sd[at]
    image = ax.imshow(values, vmin=0, vmax=1, cmap=COLOURS, origin="lower", aspect="auto")
    i, j = np.nonzero(values <= random)
    ax.plot(j, i, linestyle="none", marker=".", markersize=2, markeredgewidth=0, color="white")
    for places, set_ticks in ((columns, ax.set_xticks), (rows, ax.set_yticks)):
        ends = sorted({0, len(places) - 1})
        set_ticks(ends, [str(block.index[places[end]]) for end in ends])
    ax.set_box_aspect(1)
    return image


def paint(study: Study) -> list[Path]:
    """phi_matrix (with its numbers, by kind of module too, as CSV) and phi_map of each comparison that was measured."""
    frame = measured.read(study, "phi")
    if frame is None:
        return []
    out = []
    for comparison in measured.comparisons(study):
        rows = phi_pairs.of_runs(frame, comparison.choices)
        found = phi_pairs.blocks(rows, comparison.choices)
        if not any(block.size for block in found):
            continue
        path = study.folder / f"phi_matrix{comparison.suffix}.csv"
        numbers = phi_pairs.frame(found, rows, comparison.choices)
        write_text(path, numbers.to_csv(index=False, lineterminator="\n"), durable=False)
        foot = _row_notes(rows, comparison)
        out += [*_paint_matrix(study, comparison, found, foot), path, *_paint_maps(study, comparison, found, foot)]
    return out


def _paint_matrix(study: Study, comparison: Comparison, found: Sequence[Block], foot: Sequence[str]) -> list[Path]:
    matrices = points(found, [choice.arm for choice in comparison.choices])
    size, width = len(matrices[0].arms) + 1, style.COLUMN_IN
    if size > _MOST_NARROW:
        width *= 2
    names_in = 0.06 * max(len(part) for arm in (*matrices[0].arms, "random") for part in label(arm).split("\n"))
    cell_in = min(0.4, (width - names_in - 0.75) / size)
    words = [*notes(found), *foot]
    figure, axes = sheet.page([cell_in * size + names_in + 0.35] * len(matrices), 1, width, " ".join(words), {})
    images = [draw(ax, matrix) for ax, matrix in zip(axes, matrices)]
    for ax, matrix in zip(axes, matrices):
        title = comparison.title if ax is axes[0] else ""
        ax.set_title(f"{title}\n{SIDES[matrix.side]}".strip(), loc="left")
    _bar(figure, axes, images[0], [matrix.null for matrix in matrices])
    side = {**study.side, "notes": words}
    return sheet.save(figure, study.folder / f"phi_matrix{comparison.suffix}", _ids(found), side)


def _paint_maps(study: Study, comparison: Comparison, found: Sequence[Block], foot: Sequence[str]) -> list[Path]:
    """Rows for left and right, again for every six maps, or four where names are long."""
    shown = phi_pairs.shown(found)
    if not shown:
        return []
    longest = max(len(arm) for maps in shown for arm in (maps[0].arm_a, maps[0].arm_b))
    most = 6 if longest <= 13 else 4
    columns = -(-len(shown) // -(-len(shown) // most))
    width = style.COLUMN_IN * (1 if columns <= 2 else 2)
    groups = [shown[at : at + columns] for at in range(0, len(shown), columns)]
    side_in = min(1.05, (width - 0.75) / columns - 0.22)
    title_in = 0.13 * max(_title(maps[0]).count("\n") + 1 for maps in shown)
    words = [*map_notes(shown), *foot]
    tall = [side_in + 0.38 + title_in / 2] * (2 * len(groups))  # equal, for equal maps
    figure, axes = sheet.page(tall, columns, width, " ".join(words), {})
    images = []
    for number, ax in enumerate(axes):
        row, column = divmod(number, columns)
        maps, side = groups[row // 2], list(SIDES)[row % 2]
        own = [block for block in maps[column] if block.side == side] if column < len(maps) else []
        if not own:
            ax.set_axis_off()
            continue
        images.append(draw_map(ax, own[0]))
        ax.set_title("" if row % 2 else _title(own[0]))
        ax.set_ylabel(f"{side}, i" if column == 0 else "", labelpad=1)
        ax.set_xlabel("j" if row % 2 else "", labelpad=1)
    _bar(figure, axes, images[0], [matrix.null for matrix in points(found, [c.arm for c in comparison.choices])])
    if comparison.title:
        figure.suptitle(comparison.title, x=0.01, ha="left", fontsize=style.FONT_PT)
    side = {**study.side, "notes": words}
    return sheet.save(figure, study.folder / f"phi_map{comparison.suffix}", _ids(found), side)


def _title(block: Block) -> str:
    between = "seed to seed" if block.arm_a == block.arm_b else f"× {block.arm_b}"
    return f"{block.arm_a}\n{between}" + ("\nshared start" if block.shared_start else "")


def _ids(found: Sequence[Block]) -> list[str]:
    return sorted({run for block in found for run in block.ids})


def _bar(figure: Figure, axes: Sequence[Axes], image: AxesImage, nulls: Sequence[float]) -> None:
    """The scale of all panels; an arrow at each side's random level."""
    bar = figure.colorbar(image, ax=list(axes), fraction=0.04, aspect=30, pad=0.02, shrink=0.8, ticks=[0, 0.5, 1])
    bar.ax.spines[:].set_visible(False)
    bar.ax.set_title("φ")
    for null in nulls:
        bar.ax.axhline(null, color="white", linewidth=1.2)
        bar.ax.plot([1.0], [null], transform=bar.ax.get_yaxis_transform(), marker="<", markersize=3.5, color="black",
                    clip_on=False, linestyle="none")  # fmt: skip


def notes(found: Sequence[Block]) -> list[str]:
    """What the matrix's numbers are means of, what its marks say, and what may not be concluded."""
    cells = phi_pairs.cells(found)
    sizes = measured.span([cell.size for cell in cells if cell.size])
    out = [f"φ of the first {sizes} singular vectors; {_means(found)}. Arrows: random subspaces."]
    if any(cell.arm_a == cell.arm_b for cell in cells):
        out.append("Diagonal: seed to seed. Below: methods at unequal seeds.")
    if any(cell.equal_seeds for cell in cells):
        out.append("Above: equal seeds, kept apart.")
    if any(cell.shared_start for cell in cells):
        out.append("° both started from the same A0.")
    out += _baseline(found)
    if any(cell.as_between_seeds for cell in cells):
        out.append("≈ runs of the two methods are as alike as seeds of one of them: not a finding.")
    return out


def map_notes(shown: Sequence[tuple[Block, ...]]) -> list[str]:
    """What the maps show."""
    found = [block for maps in shown for block in maps]
    out = [
        f"φ(i, j) of the first i (of the one named first) and j singular vectors; {_means(found)}. Arrows: random "
        "subspaces at the greatest i = j. Dot: not above their mean by two standard deviations."
    ]
    if any(block.size < block.index[-1] for block in found if block.index):
        out.append("Where modules differ in rank: up to the least, which all have.")
    if any(block.arm_a != block.arm_b and not block.equal_seeds for block in found):
        out.append("Pairs of methods: the least and the most alike at unequal seeds.")
    if any(block.shared_start for block in found):
        out.append("Shared start: both started from the same A0.")
    return [*out, *_baseline(found)]


def _means(found: Sequence[Block]) -> str:
    """What is averaged."""
    kinds = {
        "within a method": [b.pairs for b in found if b.arm_a == b.arm_b],
        "between two": [b.pairs for b in found if b.arm_a != b.arm_b and not b.equal_seeds],
        "at equal seeds": [b.pairs for b in found if b.equal_seeds],
    }
    pairs = ", ".join(f"{measured.span(own)} {name}" for name, own in kinds.items() if own)
    modules = measured.span([block.modules for block in found])
    return f"mean over all {modules} modules and over pairs of runs ({pairs})"


def _baseline(found: Sequence[Block]) -> list[str]:
    if any(block.arm_a == block.arm_b for block in found):
        return ["A difference between methods that is no greater than between seeds is not a finding."]
    return ["No two seeds of one method: no seed-to-seed baseline, so no difference here is a finding."]


def _row_notes(rows: pd.DataFrame, comparison: Comparison) -> list[str]:
    """Of both runs of a pair: mixtures, undefined values, runs without measures."""
    expected = [str(arm) for end in "ab" for arm in rows.loc[rows[f"part_{end}"] == "expected", f"arm_{end}"].unique()]
    lost = measured.without([*rows["id_a"].unique(), *rows["id_b"].unique()], comparison)
    return [
        *measured.mixtures(expected),
        *measured.gaps(rows, "phi"),
        *([f"In no pair: {len(lost)} of {len(comparison.ids)} runs."] if lost else []),
    ]
