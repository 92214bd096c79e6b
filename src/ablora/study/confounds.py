"""What differs between compared cells beside the method: the errors that published comparisons made, by field.

Cells are compared where they differ in the method (its preset, or a part of it) and the seed alone. Between them, a
field that the question does not sweep should be one value: s by another convention, another optimizer or sequence
length, or a method that was tuned over more rates, is a difference that the table would show as the method's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablora.spec import BadInput, RunSpec, canonical
from ablora.study.confirm import CONFIRM
from ablora.study.manifest import Row
from ablora.study.plan import Plan

BUDGET = 0.05
"""Trainable parameters that differ by more, as a share of the fewest, are another budget."""
PLACES = ("dataset", "model", "rank", "budget")
"""Axes whose values are never compared with each other."""
NAMES = 4
"""Methods that a line names of each value."""


@dataclass(frozen=True, slots=True)
class Confound:
    """A field in which compared cells differ."""

    field: str
    methods: Mapping[str, tuple[str, ...]]
    """By value, as text: the methods that have it."""

    def __str__(self) -> str:
        return f"{self.field}: " + "; ".join(f"{value} in {_few(names)}" for value, names in self.methods.items())


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES])
    return shown if len(names) <= NAMES else f"{shown} and {len(names) - NAMES} more"


def confounds(plan: Plan) -> list[Confound]:
    """Every field in which compared cells of a plan differ, with the values and whose they are."""
    rows = [row for row in plan.rows if row.why != CONFIRM]
    found: dict[str, dict[str, dict[str, None]]] = {}
    seen: dict[int, Mapping[str, str]] = {}
    for compared in _compared(rows):
        swept = {key for row in compared for key in row.labels}
        methods = {_method(row): None for row in compared}
        if len(methods) < 2:
            continue
        by_field: dict[str, dict[str, dict[str, None]]] = {}
        for method, spec in _kinds(plan, compared):
            for name, value in _fields(spec, seen).items():
                by_field.setdefault(name, {}).setdefault(value, {})[method] = None
        by_field = {name: values for name, values in by_field.items() if not _is_swept(name, swept)}
        for name, values in (*by_field.items(), *_of_arms(plan, compared, seen)):
            if _differs(values, methods):
                for value, whose in values.items():
                    found.setdefault(name, {}).setdefault(value, {}).update(whose)
    return [Confound(name, {value: tuple(whose) for value, whose in values.items()})
            for name, values in sorted(found.items())]  # fmt: skip


def require_none(plan: Plan) -> None:
    """Refuse a plan with confounds; the error names the first and counts the others."""
    found = confounds(plan)
    if found:
        more = f" ({len(found) - 1} more: {', '.join(c.field for c in found[1:])})" if len(found) > 1 else ""
        first = found[0]
        raise BadInput(first.field, " | ".join(first.methods), f"one value for all compared methods: {first}{more}; "
                       "without --strict it is listed and allowed")  # fmt: skip


def _compared(rows: Sequence[Row]) -> list[list[Row]]:
    """Cells that differ in the method, the seed and the axes that are tuned over, not in the data set or the model."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        place = {key: value for key, value in row.labels.items() if _head(key) in PLACES}
        out.setdefault(json.dumps(place, sort_keys=True, default=str), []).append(row)
    return list(out.values())


def _kinds(plan: Plan, compared: Sequence[Row]) -> Iterator[tuple[str, RunSpec]]:
    """Each method with each recipe that it has: of cells that share all their parts the first."""
    known: set[tuple[str, int, int, int, int]] = set()
    for row in compared:
        spec, method = plan.specs[row.id], _method(row)
        parts = (method, id(spec.train), id(spec.adapter), id(spec.eval), id(spec.method))
        if parts not in known:
            known.add(parts)
            yield method, spec


def _head(key: str) -> str:
    return key.replace("/", ".").partition(".")[0]


def _method(row: Row) -> str:
    """The method as the question tells it apart."""
    parts = [f"{key}={value}" for key, value in row.labels.items() if _head(key) == "method" and key != "method"]
    return " ".join([row.method, *parts])


def _is_swept(name: str, swept: set[str]) -> bool:
    """Whether the question sweeps the field itself, or a group that holds it; a preset is no sweep of its parts."""
    keys = {key.replace("/", ".") for key in swept} - {"method"}
    return any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for key in keys)


def _differs(values: Mapping[str, Mapping[str, None]], methods: Mapping[str, None]) -> bool:
    """Whether some method lacks a value that another has."""
    return any(whose.keys() != methods.keys() for whose in values.values())


def _fields(spec: RunSpec, seen: dict[int, Mapping[str, str]]) -> Mapping[str, str]:
    """What should be one value between methods, by path, as text. Cells share their parts: each is read once."""
    out: dict[str, str] = {}
    for name, part in (("train", spec.train), ("adapter", spec.adapter), ("eval", spec.eval)):
        if id(part) not in seen:
            seen[id(part)] = dict(_flat(name, canonical(part)))
        out |= seen[id(part)]
    if (scaling := getattr(spec.method, "scaling", None)) is not None:
        out["method.scaling"] = _said(canonical(scaling))
    return out


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and path.count(".") < 2:
        for key, part in value.items():
            if key not in ("kind", "revision"):
                yield from _flat(f"{path}.{key}", part)
    else:
        yield path, _said(value)


def _said(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        fields = ", ".join(f"{k}={_said(v)}" for k, v in value.items() if k not in ("kind", "revision", "content"))
        return f"{value['kind']}({fields})"
    return json.dumps(value, sort_keys=True)


def _of_arms(
    plan: Plan, compared: Sequence[Row], seen: dict[int, Mapping[str, str]]
) -> Iterator[tuple[str, dict[str, dict[str, None]]]]:
    """What is no field of one run: seeds, how many values each method is tried at, and trainable parameters."""
    seeds: dict[str, set[int]] = {}
    trials: dict[str, set[str]] = {}
    counts: dict[str, set[int]] = {}
    for row in compared:
        method = _method(row)
        seeds.setdefault(method, set()).add(plan.specs[row.id].seed)
        counts.setdefault(method, set()).add(plan.parameters[row.id])
    for method, spec in _kinds(plan, compared):
        trials.setdefault(method, set()).add(json.dumps(_fields(spec, seen), sort_keys=True))
    yield "seeds (data order, dropout, start)", _by_value({m: str(sorted(own)) for m, own in seeds.items()})
    yield "settings tried", _by_value({m: str(len(own)) for m, own in trials.items()})
    fewest = min(map(min, counts.values()))
    if max(map(max, counts.values())) > (1 + BUDGET) * max(fewest, 1):
        yield "trainable parameters", _by_value({m: f"{max(own):,}" for m, own in counts.items()})


def _by_value(values: Mapping[str, str]) -> dict[str, dict[str, None]]:
    out: dict[str, dict[str, None]] = {}
    for method, value in values.items():
        out.setdefault(value, {})[method] = None
    return out
