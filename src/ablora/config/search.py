"""A search as a question: the arms of the grid, each with its configuration frozen and its parameters' places in it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep

from ablora.config.axes import BUDGET, EXECUTION, Axis, Value
from ablora.config.budget import solved
from ablora.config.compose import Composer, resolve
from ablora.config.loader import is_group, parse, require_choice
from ablora.spec import BadInput, check
from ablora.study.cell import Cell
from ablora.study.confirm import TUNE
from ablora.tree import build
from ablora.tune.frozen import Arm, Search, Variant
from ablora.tune.settings import Fair, Optuna
from ablora.tune.space import Dimension, dimensions

Chosen = Sequence[tuple[Axis, int]]


def split(loader: ConfigLoader, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """A command line without its intervals, and those as a space: train.lr=tag(log,interval(1e-4,1e-2))."""
    rest, found = [], {}
    for argument, override in zip(arguments, parse(loader, list(arguments))):
        value = override.value()
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            ends = {"low": value.start, "high": value.end}
            found[override.key_or_group] = {**ends, "log": "log" in value.tags, "int": whole}
        else:
            rest.append(argument)
    return rest, found


def search_of(tree: Mapping[str, Any], space: Any) -> Search | None:
    """What a configuration and a sweep's `search` ask for, without its arms yet; None where that is no search."""
    protocol, tuner = _built(tree, "protocol", Fair), _built(tree, "tuner", Optuna)
    if protocol is not None:
        check(
            space is None, "sweep.search", space, "left out with protocol=fair, which tunes one axis on a common grid"
        )
        check(tuner is None, "tuner", "optuna", "left out with protocol=fair, which has a tuner of its own")
        low, high = protocol.reach
        axes = (Dimension(key=protocol.axis, name=protocol.axis, low=low, high=high, log=True, values=protocol.values),
                Dimension(key="seed", name="seed", choices=protocol.tuning_seeds))  # fmt: skip
        return Search(protocol.tuner(), axes, (), protocol)
    if tuner is None:
        check(space is None, "sweep.search", space, "a search has a tuner: tuner=optuna")
        return None
    legal = "a search space: `search` in the sweep file, or KEY=interval(LOW,HIGH), KEY=tag(log,interval(LOW,HIGH))"
    check(space is not None, "tuner", "optuna", legal)
    return Search(tuner, dimensions(space), ())


def _built(tree: Mapping[str, Any], key: str, kind: type) -> Any:
    if not tree.get(key):
        return None
    try:
        value = build(tree[key])
    except BadInput as error:
        raise error.under(key) from error
    check(isinstance(value, kind), key, tree[key], f"a file of conf/{key}")
    return value


def arm_of(composer: Composer, search: Search, chosen: Chosen) -> tuple[Arm, list[Cell]]:
    """One arm, frozen, and the ends of its space as cells."""
    labels = {axis.key: axis.values[i].parsed for axis, i in chosen if axis.swept}
    named = Cell({}, labels, ())
    try:
        _require_apart(search, chosen)
        variants = tuple(_variants(composer, search, labels, chosen))
    except BadInput as error:
        raise named.blame(error) from error
    arm = Arm(labels, tuple(variant for variant, _ in variants))
    budget = variants[0][1]
    cells = [
        Cell(arm.variant(values).at(values), search.labels(arm, values), (), TUNE, budget)
        for values in arm.corners(search.by_name)
    ]
    return arm, cells


def _require_apart(search: Search, chosen: Chosen) -> None:
    """A value that is given for a key that varies would be written over without a word."""
    given = {axis.key: axis.values[i].parsed for axis, i in chosen}
    for one in search.space:
        legal = "left out here: it is varied, by the search or the protocol, and cannot be given too"
        check(one.key not in given, one.key, given.get(one.key), legal)


def _variants(
    composer: Composer, search: Search, labels: Mapping[str, Any], chosen: Chosen
) -> Iterator[tuple[Variant, Any]]:
    """One for each combination of those choices that are files of conf/: other keys exist in each."""
    groups = [one for one in search.space if is_group(composer.loader, one.key) and one.holds(labels)]
    axes = [_axis(composer.loader, one) for one in groups]
    for indices in product(*(range(len(axis.values)) for axis in axes)):
        own = [*chosen, *zip(axes, indices)]
        choices = {one.name: one.choices[i] for one, i in zip(groups, indices)}
        here = {**labels, **{one.key: one.choices[i] for one, i in zip(groups, indices)}}
        plain = [one for one in search.space if one not in groups and one.holds(here)]
        yield _variant(composer, own, choices, plain)


def _axis(loader: ConfigLoader, one: Dimension) -> Axis:
    legal = f"choices: {one.key} is a group of conf/"
    check(bool(one.choices), f"sweep.search.{one.key}", [one.low, one.high], legal)
    for choice in one.choices:
        require_choice(loader, one.key, str(choice))
    values = tuple(Value(f"{one.key}={choice}", choice) for choice in one.choices)
    return Axis(one.key, values, swept=False, composed=True)


def _variant(
    composer: Composer, chosen: Chosen, choices: Mapping[str, Any], plain: Sequence[Dimension]
) -> tuple[Variant, Any]:
    written = composer.tree(chosen)
    texts = [axis.values[i].text for axis, i in chosen]
    resolved, budget = solved(composer, written, texts)
    if budget is not None:
        _require_one_rank(composer, written, texts, plain, resolved["rank"])
    marks = {one.name: f"\0{one.name}\0" for one in plain}
    marked = {**{key: value for key, value in written.items() if key != BUDGET}, "rank": resolved["rank"]}
    if any(one.key == "rank" for one in plain):
        marked["rank"] = written["rank"]
    for one in plain:
        marked = _with(composer, marked, one, marks[one.name])
    found = _places(resolve(marked), marks)
    tree = {key: value for key, value in resolved.items() if key not in EXECUTION}
    return Variant(choices, tuple(marks), tree, {name: tuple(found[name]) for name in marks}), budget


def _with(composer: Composer, tree: dict[str, Any], one: Dimension, value: Any) -> dict[str, Any]:
    try:
        return composer.put(tree, one.key, value)
    except BadInput as error:
        legal = f"{error.legal}; where only some arms have it, say in which: `when: {{method: ...}}`"
        raise BadInput(f"sweep.search.{one.key}", "...", legal) from error


def _require_one_rank(
    composer: Composer, tree: dict[str, Any], texts: Sequence[str], plain: Sequence[Dimension], rank: Any
) -> None:
    """A budget solves the rank once for an arm; a parameter that would change it is refused."""
    for one in plain:
        for value in one.corners():
            other, _ = solved(composer, composer.put(tree, one.key, value), texts)
            legal = "a key that leaves the rank as it is, where a budget solves it"
            check(other["rank"] == rank, f"sweep.search.{one.key}", value, legal)


def _places(tree: Mapping[str, Any], marks: Mapping[str, str]) -> dict[str, list[tuple[str, ...]]]:
    """Where the marks stand."""
    found: dict[str, list[tuple[str, ...]]] = {name: [] for name in marks}
    for path, leaf in _leaves(tree, ()):
        for name, mark in marks.items():
            if leaf == mark:
                found[name].append(path)
            elif isinstance(leaf, str) and mark in leaf:
                legal = f"a key that others take as it is; {'.'.join(path)} computes with it"
                raise BadInput(f"sweep.search.{name}", leaf.replace("\0", ""), legal)
    return found


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from _leaves(own, (*path, key))
    else:
        yield path, value
