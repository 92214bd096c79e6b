"""A command line as a question: every cell as a resolved tree, and how the study is to be executed."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader

from ablora.config.axes import EXECUTION, Axis, Value, from_arguments, from_grid, replaced, sweep_name
from ablora.config.budget import solved
from ablora.config.compose import Composer
from ablora.config.loader import open_loader, require_choice
from ablora.config.search import arm_of, search_of, split
from ablora.spec import BadInput, check
from ablora.study.cell import Cell
from ablora.study.confirm import CONFIRM, TUNE, Confirm
from ablora.study.execution import Execution, execution_of
from ablora.tree import build
from ablora.tune.frozen import Search


@dataclass(frozen=True, slots=True)
class Question:
    """What a command asks for; nothing is validated yet beyond the configuration's own keys."""

    cells: tuple[Cell, ...]
    execution: Execution
    arguments: tuple[str, ...]
    sweeping: bool
    """Whether it is a study by its form: `-m`, or a sweep file."""
    confirm: Confirm | None = None
    """Where there is one, cells that say "confirm" are its candidates, the others tune."""
    search: Search | None = None
    """Where there is one, the cells are the ends of its space."""


def ask(arguments: Sequence[str], multirun: bool, beside: Path | None = None) -> Question:
    """Compose every cell of a command line (without `-m`: the one cell); `beside`: the user's own conf/."""
    with open_loader(beside) as loader:
        return ask_with(loader, arguments, multirun)


def ask_with(loader: ConfigLoader, arguments: Sequence[str], multirun: bool, always: Sequence[str] = ()) -> Question:
    """The same over a loader that Hydra made; `always` holds overrides of Hydra's own node."""
    sweeping = multirun or any(argument.lstrip("+").startswith("sweeps=") for argument in arguments)
    rest, intervals = split(loader, arguments)
    check(sweeping or not intervals, next(iter(intervals), ""), "interval(...)", "a search: ablora run -m tuner=optuna")
    axes = {axis.key: axis for axis in from_arguments(loader, rest, sweeping)}
    composer = Composer(loader, always)
    blocks, confirm, space = _sweep(loader, composer, axes)
    space = {**(space or {}), **intervals} or None
    fixed = [(axis, 0) for axis in axes.values() if axis.key != "sweep"]
    settings = composer.resolve({key: value for key, value in composer.tree(fixed).items() if key in EXECUTION})
    search = search_of(settings, space)
    if search is not None:
        check(confirm is None, "sweep.confirm", "...", "left out where there is a search; protocol=fair confirms")
        products = [[*_rest(axes, block), *block] for block in blocks]
        found = [arm_of(composer, search, chosen) for one in products for chosen in _product(one)]
        search = replace(search, arms=tuple(arm for arm, _ in found))
        _require_distinct(search)
        corners = tuple(cell for _, cells in found for cell in cells)
        return Question(corners, execution_of(settings), tuple(arguments), True, None, search)
    stages = [(TUNE if confirm else "grid", [[*_rest(axes, block), *block] for block in blocks])]
    if confirm is not None:
        stages.append((CONFIRM, [_fresh(block, confirm) for block in stages[0][1]]))
    asked = [(why, chosen) for why, products in stages for product in products for chosen in _product(product)]
    trees = [_composed(composer, chosen) for _, chosen in asked]
    cells = tuple(_cell(tree, chosen, why, budget) for (tree, budget), (why, chosen) in zip(trees, asked))
    return Question(cells, execution_of(trees[0][0]), tuple(arguments), sweeping, confirm)


def _fresh(product: Sequence[Axis], confirm: Confirm) -> list[Axis]:
    """A product of axes with the fresh seeds in place of its own."""
    swept = [axis.key for axis in product if axis.swept]
    legal = f"an axis of the grid that is not the seed: {', '.join(key for key in swept if key != 'seed')}"
    check(confirm.axis in swept and confirm.axis != "seed", "sweep.confirm.axis", confirm.axis, legal)
    seeds = Axis("seed", tuple(Value(f"seed={seed}", seed) for seed in confirm.seeds), swept=True, composed=False)
    return [*(axis for axis in product if axis.key != "seed"), seeds]


def _sweep(
    loader: ConfigLoader, composer: Composer, axes: Mapping[str, Axis]
) -> tuple[list[list[Axis]], Confirm | None, Any]:
    """The blocks of the sweep file's grid, with the command line's values, its second stage and its search space; one
    empty block without a file."""
    name = sweep_name(axes)
    if name is None:
        return [[]], None, None
    require_choice(loader, "sweeps", name)
    own = [(axis, 0) for axis in axes.values() if axis.key == "sweeps" or axis.key.startswith("sweep.")]
    found = composer.cell(own).get("sweep")
    legal = (f"a mapping with `grid` (axes of sweeps/{name}.yaml, or a list of such blocks), and perhaps `confirm`, or "
             "`search` for a tuner")  # fmt: skip
    if not isinstance(found, Mapping) or not found:
        raise BadInput("sweep", found, legal)
    for key in found:
        check(key in ("grid", "confirm", "search"), f"sweep.{key}", found[key], legal)
    space = found.get("search")
    check("grid" in found or space is not None, "sweep", found, legal)
    grid = found.get("grid", [])
    blocks = grid if isinstance(grid, list) else [grid]
    for block in blocks:
        check(isinstance(block, Mapping) and bool(block), "sweep.grid", block, legal)
    check(space is None or isinstance(space, Mapping), "sweep.search", space, "a mapping of keys")
    products = [replaced(from_grid(loader, block), axes) for block in blocks] or [[]]
    return products, _confirm(found.get("confirm")), space


def _require_distinct(search: Search) -> None:
    """Blocks of a grid may overlap; an arm that stands in two would have its trials twice."""
    names = [arm.name for arm in search.arms]
    for name in names:
        check(names.count(name) == 1, "sweep.grid", name, "arms of which none stands twice")


def _confirm(tree: Any) -> Confirm | None:
    try:
        return None if tree is None else build(tree, Confirm)
    except BadInput as error:
        raise error.under("sweep.confirm") from error


def _rest(axes: Mapping[str, Axis], block: Sequence[Axis]) -> list[Axis]:
    own = {axis.key for axis in block}
    return [axis for key, axis in axes.items() if key not in own]


def _product(axes: Sequence[Axis]) -> Iterator[list[tuple[Axis, int]]]:
    """Every combination, the last axis running fastest."""
    for indices in itertools.product(*(range(len(axis.values)) for axis in axes)):
        yield list(zip(axes, indices))


def _composed(composer: Composer, chosen: Sequence[tuple[Axis, int]]) -> tuple[dict[str, Any], Any]:
    """The tree with its rank, and the budget that solved it."""
    try:
        return solved(composer, composer.tree(chosen), [axis.values[i].text for axis, i in chosen])
    except BadInput as error:
        raise _cell({}, chosen).blame(error) from error


def _cell(tree: Mapping[str, Any], chosen: Sequence[tuple[Axis, int]], why: str = "grid", budget: Any = None) -> Cell:
    return Cell(
        tree={key: value for key, value in tree.items() if key not in EXECUTION},
        labels={axis.key: axis.values[i].parsed for axis, i in chosen if axis.swept},
        overrides=tuple(axis.values[i].text for axis, i in chosen if axis.swept),
        why=why,
        budget=budget,
    )
