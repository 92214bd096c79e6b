"""Cells: Hydra composes each combination of group choices once; plain values are set by path on its plain tree.

Composing costs 81 ms. A cell's top-level parts (method, train, ...) are set and resolved once for all cells in which
they and what they refer to are the same, and are then one object, so that `study.parts` builds and hashes them once
too. That the ids are those of Hydra's own composition is a test (tests/test_config.py).
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import OmegaConf

from ablora.config.axes import BUDGET, EXECUTION, Axis
from ablora.config.loader import is_group, load, plain
from ablora.spec import BadInput, RunSpec, check

SPEC_KEYS = tuple(f.name for f in fields(RunSpec))
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
"""A leaf that is one absolute reference, such as ${rank}; anything richer is left to OmegaConf."""
ENVIRONMENT = re.compile(r"\$\{oc\.env:[^${}]*\}")
"""What reads no part of the tree, though it is left to OmegaConf."""
Tree = dict[str, Any]


class _Richer(Exception):  # noqa: N818 -- a way out of a recursion
    """This tree needs OmegaConf's own resolution."""


class Composer:
    """Makes trees of cells; remembers each combination of Hydra-composed overrides, and each part of a tree."""

    def __init__(self, loader: ConfigLoader, always: Sequence[str] = ()):
        self.loader, self.always = loader, tuple(always)
        self.known: dict[tuple[str, ...], Tree] = {}
        self.sizes: dict[str, Any] = {}
        """What `config.budget` has counted."""
        self.ranks: dict[tuple[Any, ...], tuple[int, Any]] = {}
        """What it has solved: rank and parameters."""
        self.budgets: dict[int, Any] = {}
        """What it has built, by the identity of the part."""
        self._parts: dict[tuple[Any, ...], Any] = {}
        self._resolved: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        self._reads: dict[int, tuple[frozenset[str] | None, Any]] = {}
        self._equal: dict[tuple[str, str], Any] = {}

    def base(self, overrides: Sequence[str]) -> Tree:
        """The unresolved plain tree of some overrides, composed by Hydra."""
        key = (*self.always, *overrides)
        if key not in self.known:
            tree = plain(load(self.loader, list(key)), resolve=False)
            tree.pop("hydra", None)
            self.known[key] = _require_known_keys(tree)
        return self.known[key]

    def cell(self, chosen: Sequence[tuple[Axis, int]]) -> Tree:
        """The resolved tree of one cell, given for each axis the index of its value. Parts are shared: change none."""
        return self.resolve(self.tree(chosen))

    def tree(self, chosen: Sequence[tuple[Axis, int]]) -> Tree:
        """The same with its references as they are written."""
        composed = tuple(axis.values[i].text for axis, i in chosen if axis.composed)
        base = self.base(composed)
        own: dict[str, list[tuple[str, Any]]] = {}
        for axis, i in chosen:
            if not axis.composed:
                own.setdefault(axis.key.partition(".")[0], []).append((axis.key, axis.values[i].parsed))
        return base | {top: self._part(composed, base, top, values) for top, values in own.items()}

    def _part(self, composed: tuple[str, ...], base: Tree, top: str, values: Sequence[tuple[str, Any]]) -> Any:
        """One part with the plain values that belong to it."""
        name = (composed, *((key, repr(value)) for key, value in values))  # repr: 1, 1.0, true and "1" are four values
        if name not in self._parts:
            for key, value in values:
                base = self.put(base, key, value)
            self._parts[name] = base[top]
        return self._parts[name]

    def resolve(self, tree: Tree) -> Tree:
        """`resolve`, by parts: those that are the same, with what they refer to, are one object in the results."""
        return {top: self.part(tree, top) for top in tree}

    def part(self, tree: Tree, top: str) -> Any:
        """One part of `resolve(tree)`."""
        part = tree[top]
        if not isinstance(part, dict | list | str):
            return part
        reads = self._read_by(part)
        needs = (top,) if reads is not None and not reads else self._needs(tree, top)
        parts = tuple(tree[key] for key in needs if key in tree)
        # A part is told by its identity, which holds while it is kept; a plain value by itself.
        name = (top, needs, *(id(part) if isinstance(part, dict | list) else repr(part) for part in parts))
        if name not in self._resolved:
            found = resolve_part(tree, top)
            self._resolved[name] = self._equal.setdefault((top, repr(found)), found), parts
        return self._resolved[name][0]

    def _needs(self, tree: Tree, top: str) -> tuple[str, ...]:
        """The parts that decide what a part resolves to: itself, and by references all that it leads to."""
        found, new = {top}, [top]
        while new:
            part = tree.get(new.pop())
            reads = self._read_by(part)
            if reads is None:
                return tuple(sorted(tree))
            new += reads - found
            found |= reads
        return tuple(sorted(found))

    def _read_by(self, part: Any) -> frozenset[str] | None:
        """The parts that a part's references name; None: they are richer than absolute ones, and may read anything."""
        if not isinstance(part, dict | list):
            return _references(part)
        if id(part) not in self._reads:
            self._reads[id(part)] = _references(part), part
        return self._reads[id(part)][0]

    def put(self, tree: Tree, key: str, value: Any) -> Tree:
        """A copy of the tree, along the path, with the value at the key."""
        out = node = dict(tree)
        *parents, last = key.split(".")
        for part in parents:
            if not isinstance(node.get(part), Mapping):
                raise _unknown(tree, key, value)
            node[part] = dict(node[part])
            node = node[part]
        if last not in node:
            raise _unknown(tree, key, value)
        if isinstance(node[last], Mapping) and value is not None:
            raise self._over_a_mapping(key, value)
        node[last] = value
        return out

    def _over_a_mapping(self, key: str, value: Any) -> BadInput:
        group = key.replace(".", "/")
        if not is_group(self.loader, group):
            return BadInput(key, value, f"a mapping; set one of its fields, as in {key}.FIELD=...")
        options = sorted(self.loader.get_group_options(group))
        return BadInput(key, value, f"a group; did you mean {group}={value}? It is one of {', '.join(options)}")


def resolve(tree: Tree) -> Tree:
    """The tree with every `${a.b}` replaced by what it refers to."""
    return {top: resolve_part(tree, top) for top in tree}


def resolve_part(tree: Tree, top: str) -> Any:
    """The same of one top-level part."""
    try:
        return _resolved(tree[top], tree, top, ())
    except _Richer:
        return plain(OmegaConf.create(tree), resolve=True)[top]


def _resolved(value: Any, root: Mapping[str, Any], where: str, following: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        prefix = f"{where}." if where else ""
        return {key: _resolved(part, root, f"{prefix}{key}", following) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, root, f"{where}.{i}", following) for i, part in enumerate(value)]
    if isinstance(value, str):
        check(value != "???", where, value, f"a value; it has no default, so give {where}=...")
        if "${" in value:
            return _referred(value, root, where, following)
    return value


def _referred(text: str, root: Mapping[str, Any], where: str, following: tuple[str, ...]) -> Any:
    match = REFERENCE.fullmatch(text)
    if match is None or match[1] in following:
        raise _Richer  # also a reference that comes back to itself: OmegaConf says so
    node: Any = root
    for part in match[1].split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise BadInput(where, text, "a reference to a key that exists")
        node = node[part]
        if isinstance(node, str) and "${" in node:
            node = _resolved(node, root, match[1], (*following, match[1]))
    return _resolved(node, root, where, (*following, match[1]))


def _references(value: Any) -> frozenset[str] | None:
    """The top-level keys that the absolute references below a value begin with; None where there are richer ones."""
    if isinstance(value, str):
        rest = ENVIRONMENT.sub("", value)
        heads = frozenset(name.partition(".")[0] for name in REFERENCE.findall(rest))
        return None if "${" in REFERENCE.sub("", rest) else heads
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [_references(part) for part in parts]
    return None if None in found else frozenset().union(*(names for names in found if names))


def _require_known_keys(tree: Tree) -> Tree:
    legal = (*SPEC_KEYS, BUDGET, *EXECUTION)
    for key, value in tree.items():
        check(key != "sweeps", key, "...", "a sweep file begins, on its very first line, with `# @package _global_`")
        check(key != "sweep" or isinstance(value, Mapping), key, value, f"a sweep file is chosen by +sweeps={value}")
        check(key in legal, key, value, f"an unknown key; the configuration has {', '.join(legal)}")
    return tree


def _unknown(tree: Mapping[str, Any], key: str, value: Any) -> BadInput:
    """What the user may have meant, and the keys at the deepest level that exists."""
    node: Any = tree
    reached = []
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            break
        node = node[part]
        reached.append(part)
    axis = key.removeprefix("sweep.grid.")
    if reached == ["sweep", "grid"] and isinstance(node, Mapping) and axis in node:  # its dot is part of its name
        return BadInput(key, value, f"an axis by itself: {axis}=... takes the place of the grid's")
    place = f"{'.'.join(reached)} has" if reached else "the configuration has"
    here = f"{place} {', '.join(map(str, node))}" if isinstance(node, Mapping) else f"{'.'.join(reached)} has no fields"
    paths = _paths(tree)
    own = [path for path in paths if path.endswith(f".{key}") and not path.startswith("sweep.")]
    close = own or difflib.get_close_matches(key, paths, n=1)
    return BadInput(key, value, f"an unknown key; {f'did you mean {close[0]}? ' if close else ''}{here}")


def _paths(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key, value in tree.items():
        out.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            out += _paths(value, f"{prefix}{key}.")
    return out
