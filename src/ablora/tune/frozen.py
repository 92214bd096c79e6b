"""A search as it is written down: every arm's configuration with the places where its parameters go.

tune.json   {"schema", "tuner", "space", "arms": [{"labels", "method", "variants": [{"choices", "names", "tree",
            "places"}]}], "protocol"}. So that going on, and a worker on a node, need no configuration files: those
            may have changed or gone since.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ablora.spec import BadInput, RunSpec, check
from ablora.store import atomic
from ablora.study.manifest import StudyFolder
from ablora.tree import build, to_tree
from ablora.tune.settings import Fair, Optuna
from ablora.tune.space import Dimension

SCHEMA = 1
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """An arm at one combination of the choices that are files of conf/ (method=goat): what else varies there."""

    choices: Mapping[str, Any]
    """By parameter name."""
    names: tuple[str, ...]
    """The parameters that its trials have beside those."""
    tree: Mapping[str, Any]
    """Of a RunSpec, resolved."""
    places: Mapping[str, tuple[Path, ...]]
    """Where in the tree a parameter's value stands: its key, and whatever refers to it."""

    def at(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The tree with the values of its parameters."""
        tree = dict(self.tree)
        for name in self.names:
            for path in self.places[name]:
                tree = _put(tree, path, values[name])
        return tree


@dataclass(frozen=True, slots=True)
class Arm:
    """What is searched by itself, with trials of its own: a cell of the grid."""

    labels: Mapping[str, Any]
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.labels.items()) or "all"

    @property
    def method(self) -> str:
        """The name of its method; where that is a choice of the search, of the first one."""
        tree = self.variants[0].tree["method"]
        return str(tree.get("name") or tree["_target_"].rpartition(".")[2])

    def variant(self, values: Mapping[str, Any]) -> Variant:
        """The one that a trial's choices lead to."""
        return next(v for v in self.variants if all(values[name] == own for name, own in v.choices.items()))

    def corners(self, space: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
        """The parameters' ends, all low ones and all high ones together, of every variant."""
        for variant in self.variants:
            ends = [space[name].corners() for name in variant.names]
            for i in range(max(map(len, ends), default=1)):
                yield {**variant.choices, **{n: e[min(i, len(e) - 1)] for n, e in zip(variant.names, ends)}}


@dataclass(frozen=True, slots=True)
class Search:
    """The whole question: arms, space, tuner, and what comes after."""

    tuner: Optuna
    space: tuple[Dimension, ...]
    arms: tuple[Arm, ...]
    protocol: Fair | None = None

    @property
    def by_name(self) -> dict[str, Dimension]:
        return {one.name: one for one in self.space}

    def labels(self, arm: Arm, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial is called in tables: the arm's labels, and its parameters by their keys."""
        space = self.by_name
        return {**arm.labels, **{space[name].key: value for name, value in values.items()}}


def write(study: StudyFolder, search: Search) -> None:
    atomic.write_json(study.search, {"schema": SCHEMA, **to_record(search)})


def to_record(search: Search) -> dict[str, Any]:
    """Plain; equal searches give equal records."""
    space = [{f.name: _plain(getattr(one, f.name)) for f in fields(one)} for one in search.space]
    arms = [{"labels": dict(arm.labels), "variants": [_variant(v) for v in arm.variants]} for arm in search.arms]
    protocol = None if search.protocol is None else to_tree(search.protocol)
    return {"tuner": to_tree(search.tuner), "space": space, "arms": arms, "protocol": protocol}


def _variant(one: Variant) -> dict[str, Any]:
    places = {name: [list(path) for path in paths] for name, paths in one.places.items()}
    return {"choices": dict(one.choices), "names": list(one.names), "tree": one.tree, "places": places}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    return list(value) if isinstance(value, tuple) else value


def read(study: StudyFolder) -> Search | None:
    """The search of a study; None where it has none."""
    if not study.search.exists():
        return None
    found = atomic.read_json(study.search)
    try:
        space = tuple(_dimension(one) for one in found["space"])
        arms = tuple(Arm(one["labels"], tuple(map(_read_variant, one["variants"]))) for one in found["arms"])
        protocol = None if found["protocol"] is None else build(found["protocol"])
        return Search(build(found["tuner"]), space, arms, protocol)
    except (KeyError, TypeError, BadInput) as error:
        raise atomic.Corrupted(
            str(study.search), str(error), "a search; move it away and give the command again"
        ) from error


def _dimension(one: Mapping[str, Any]) -> Dimension:
    when = {key: tuple(values) for key, values in one["when"].items()}
    return Dimension(**{**one, "choices": tuple(one["choices"]), "values": tuple(one["values"]), "when": when})


def _read_variant(one: Mapping[str, Any]) -> Variant:
    places = {name: tuple(map(tuple, paths)) for name, paths in one["places"].items()}
    return Variant(one["choices"], tuple(one["names"]), one["tree"], places)


def require_same(study: StudyFolder, search: Search) -> None:
    """Refuse another question under a study's name; more trials are the same question."""
    old = read(study)
    if old is None:
        check(not study.rows(), "study", study.name, "another name: this study has a grid and no search")
        return
    here, there = to_record(old), to_record(search)
    for record in (here, there):
        del record["tuner"]["trials"]
    changed = [key for key in here if here[key] != there[key]]
    check(not changed, "study", study.name, f"another name: this study's {', '.join(changed)} is another")
    more = (old.tuner.trials or 0) <= (search.tuner.trials or 0)
    check(more, "tuner.trials", search.tuner.trials, f"at least {old.tuner.trials}: trials can be added, not taken")


def spec_of(arm: Arm, values: Mapping[str, Any]) -> RunSpec:
    """The run that a trial is."""
    return build(arm.variant(values).at(values), RunSpec)


def _put(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**tree, first: _put(tree[first], rest, value) if rest else value}
