"""Every figure and table of a study, from its run folders, into studies/<name>/figures/."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablora.spec import BadInput, check
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora_analysis import table
from ablora_analysis.figures import (
    arms,
    forgetting_table,
    lr_curves,
    pareto,
    phi_map,
    projection_sheet,
    result_sheet,
    routing_curves,
    routing_load,
    scaling,
    subspace_panels,
    training_curves,
)
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.sheet import rc
from ablora_analysis.figures.study import Study, chosen_items

__all__ = ["FIGURES", "chosen_items", "draw_all"]

FIGURES: tuple[Callable[[Study], list[Path]], ...] = (
    result_sheet.paint,
    training_curves.paint,
    lr_curves.paint,
    scaling.paint,
    pareto.paint,
    forgetting_table.paint,
    routing_load.paint,
    routing_curves.paint,
    subspace_panels.paint,
    phi_map.paint,
    projection_sheet.paint,
)
"""Each writes its files and returns their paths; none where the study has nothing to show in it."""

_log = logging.getLogger(__name__)


def draw_all(
    roots: Roots, study: str | None = None, stale: Callable[[RunFolder], bool] = RunFolder.is_stale
) -> list[Path]:
    """Draw one study, or each that has a finished run; returns the files, sorted. Bytes are equal when runs are.

    Stale, failed and unfinished runs are left out, counted in the foot and named in the side file. A run whose files
    cannot be read is left out too, as is a figure whose records cannot, and `Corrupted` names the first such file when
    everything else is drawn.
    """
    names = [study] if study is not None else table.studies(roots)
    check(bool(names), "study", study, f"planned first: {roots.studies} has no study")
    paths: list[Path] = []
    problems: list[Corrupted] = []
    for name in names:
        try:
            drawn, found = _draw_study(roots, name, stale)
        except BadInput as error:
            if study is not None or isinstance(error, Corrupted):
                raise
            _log.warning("%s", error)
            continue
        paths += drawn
        problems += found
    if problems:
        raise problems[0]
    check(bool(paths), "study", study, f"with finished runs; none of {', '.join(names)} has one")
    return sorted(paths)


def _draw_study(roots: Roots, study: str, stale: Callable[[RunFolder], bool]) -> tuple[list[Path], list[Corrupted]]:
    runs, problems = table.read_rows(roots, study, stale)
    prepared = arms.prepare(table.cells(roots, study, runs))
    choices = arms.choose(prepared)
    if not any(choice.ids for choice in choices):
        if problems:
            raise problems[0]
        fates = ", ".join(f"{n} {fate}" for fate, n in prepared.drop_duplicates("id")["fate"].value_counts().items())
        raise BadInput("study", study, f"a study with at least one finished run to draw; its runs are: {fates}")
    folder = roots.studies / study / "figures"
    side = {"study": study, "left_out": arms.left_out(prepared), "choices": [_readable(c) for c in choices]}
    own = Study(roots, study, folder, prepared, choices, side, roots.studies / study / "measures")
    paths: list[Path] = []
    with rc():
        for paint in FIGURES:
            try:
                paths += paint(own)
            except Corrupted as problem:  # one broken file costs the figures that need it, and no other
                problems.append(problem)
    return paths, problems


def _readable(choice: Choice) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in choice._asdict().items()}
