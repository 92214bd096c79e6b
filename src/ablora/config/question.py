"""A command line as a question: every cell as a resolved tree, and how the study is to be executed."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader

from ablora.config.axes import EXECUTION, Axis, from_arguments, from_grid, replaced, sweep_name
from ablora.config.compose import Composer
from ablora.config.loader import open_loader, require_choice
from ablora.spec import BadInput, check
from ablora.study.cell import Cell
from ablora.study.execution import Execution, execution_of


@dataclass(frozen=True, slots=True)
class Question:
    """What a command asks for; nothing is validated yet beyond the configuration's own keys."""

    cells: tuple[Cell, ...]
    execution: Execution
    arguments: tuple[str, ...]
    sweeping: bool
    """Whether it is a study by its form: `-m`, or a sweep file."""


def ask(arguments: Sequence[str], multirun: bool) -> Question:
    """Compose every cell of a command line (without `-m`: the one cell)."""
    with open_loader() as loader:
        return ask_with(loader, arguments, multirun)


def ask_with(loader: ConfigLoader, arguments: Sequence[str], multirun: bool, always: Sequence[str] = ()) -> Question:
    """The same over a loader that Hydra made; `always` holds overrides of Hydra's own node."""
    sweeping = multirun or any(argument.lstrip("+").startswith("sweeps=") for argument in arguments)
    axes = {axis.key: axis for axis in from_arguments(loader, arguments, sweeping)}
    composer = Composer(loader, always)
    combinations = [
        chosen for block in _blocks(loader, composer, axes) for chosen in _product([*_rest(axes, block), *block])
    ]
    trees = [_composed(composer, chosen) for chosen in combinations]
    cells = tuple(_cell(tree, chosen) for tree, chosen in zip(trees, combinations))
    return Question(cells, execution_of(trees[0]), tuple(arguments), sweeping)


def _blocks(loader: ConfigLoader, composer: Composer, axes: Mapping[str, Axis]) -> list[list[Axis]]:
    """The blocks of the sweep file's grid, with the command line's values; one empty block without a file."""
    name = sweep_name(axes)
    if name is None:
        return [[]]
    require_choice(loader, "sweeps", name)
    chosen = [
        a.values[0].text for a in axes.values() if a.composed and (a.key == "sweeps" or a.key.startswith("sweep."))
    ]
    found = composer.base(chosen).get("sweep")
    legal = f"a mapping with `grid`: axes of sweeps/{name}.yaml, or a list of such blocks"
    if not isinstance(found, Mapping) or not found:
        raise BadInput("sweep", found, legal)
    for key in found:
        check(key == "grid", f"sweep.{key}", found[key], legal)
    grid = found["grid"]
    blocks = grid if isinstance(grid, list) else [grid]
    for block in blocks:
        check(isinstance(block, Mapping) and bool(block), "sweep.grid", block, legal)
    return [replaced(from_grid(loader, block), axes) for block in blocks]


def _rest(axes: Mapping[str, Axis], block: Sequence[Axis]) -> list[Axis]:
    own = {axis.key for axis in block}
    return [axis for key, axis in axes.items() if key not in own]


def _product(axes: Sequence[Axis]) -> Iterator[list[tuple[Axis, int]]]:
    """Every combination, the last axis running fastest."""
    for indices in itertools.product(*(range(len(axis.values)) for axis in axes)):
        yield list(zip(axes, indices))


def _composed(composer: Composer, chosen: Sequence[tuple[Axis, int]]) -> dict[str, Any]:
    try:
        return composer.cell(chosen)
    except BadInput as error:
        raise _cell({}, chosen).blame(error) from error


def _cell(tree: Mapping[str, Any], chosen: Sequence[tuple[Axis, int]]) -> Cell:
    return Cell(
        tree={key: value for key, value in tree.items() if key not in EXECUTION},
        labels={axis.key: axis.values[i].parsed for axis, i in chosen if axis.swept},
        overrides=tuple(axis.values[i].text for axis, i in chosen if axis.swept),
    )
