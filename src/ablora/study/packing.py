"""Which runs of a study train together: one base pass serves the runs of a pack.

Who may share a pack is a matter of what the pack has in common (the base, where its adapters go, how they compute, what
an evaluation of a name is). Who should is a matter of cost: runs of one structure are one vmap, and rows of equal
length have no padding. No choice here changes what a run learns beyond rounding.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from ablora.spec import RunSpec, canonical, check

Peak = Callable[[Sequence[RunSpec]], int]
"""The predicted peak memory of a pack, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How large packs may be; no part of what a run is."""

    runs: int = 8
    """Runs of one pack at most; 1: every run by itself."""
    limit_gib: float | None = None
    """Memory that a pack may take as predicted; null: what the place to run has."""

    def __post_init__(self) -> None:
        check(self.runs >= 1, "pack", self.runs, "an integer of at least 1")
        limit = self.limit_gib
        check(limit is None or limit > 0, "memory.limit_gib", limit, "null, or a number above 0")


def packs_of(
    specs: Mapping[str, RunSpec], packing: Packing, places: int = 1, limit_gib: float | None = None,
    peak: Peak | None = None,
) -> list[list[str]]:  # fmt: skip
    """Runs, by id, as packs: neighbours of one structure, as even as they go, and no place to run left without one.

    `places`: how many packs the place runs at once. `limit_gib`: its memory, where packing names none; a run that is
    over it by itself is a pack of its own.
    """
    if packing.runs == 1:
        return [[run] for run in specs]
    most = max(1, min(packing.runs, -(-len(specs) // places)))
    limit = limit_of(specs.values(), packing, limit_gib)
    if limit is not None and peak is None:
        peak = _resident
    out: list[list[str]] = []
    for runs in _together(specs):
        for part in _even(runs, most):
            out.extend(_fitting(part, specs, peak, limit))
    return out


def limit_of(specs: Iterable[RunSpec], packing: Packing, limit_gib: float | None) -> float | None:
    """The memory that packs are held to; None where they are not weighed."""
    return packing.limit_gib or (None if limit_gib and _is_small(specs, limit_gib) else limit_gib)


HOLES = 2.0
"""Resident memory was 1.0 to 2.1 times what a pack asks for, in eight cases: glibc's heap keeps holes. A pack is
weighed as one common pass, which on a CPU is more than it takes."""


def _resident(pack: Sequence[RunSpec]) -> int:
    from ablora.train.memory import predict  # late: it imports torch

    found = predict(pack)
    fixed = found.process + found.base
    return fixed + int(HOLES * (found.peak_bytes - fixed))


SMALL = 1000
"""A base whose weights fit into the memory so many times is not weighed: a prediction takes some seconds for each kind
of method, and eight runs on the embedded base were seen to take 220 times its weights."""


def _is_small(specs: Iterable[RunSpec], limit_gib: float) -> bool:
    folders = {model.folder for model in {id(spec.model): spec.model for spec in specs}.values()}
    weights = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in folders]
    return SMALL * max(weights, default=0) <= limit_gib * 2**30


def _together(specs: Mapping[str, RunSpec]) -> list[list[str]]:
    """Runs that may share a pack, those of one structure as neighbours; otherwise in the order given."""
    alike: dict[Hashable, list[str]] = {}
    known: dict[tuple[int, ...], str] = {}  # cells of a question share their parts, so most runs meet known objects
    for run, spec in specs.items():
        parts = id(spec.model), id(spec.adapter), id(spec.eval)
        common = known.get(parts) or known.setdefault(parts, shared(spec))
        own = (run,) if not spec.method.packs else ()
        alike.setdefault((common, own), []).append(run)
    return [sorted(runs, key=lambda run: _structure(specs[run])) for runs in alike.values()]


def shared(spec: RunSpec) -> str:
    """What the runs of a pack must have in common, as text."""
    adapter = spec.adapter
    common = {
        "model": _written(spec.model),
        "adapter": [adapter.targets, adapter.compute_dtype],
        "tasks": {name: _written(task) for name, task in spec.eval.tasks.items()},
    }
    return json.dumps(common, sort_keys=True)


@cache
def _written(value: Any) -> Any:
    return canonical(value)


def _structure(spec: RunSpec) -> tuple[str, str, int, int]:
    """Equal where runs are one vmap; then by the length of their rows, about."""
    method = spec.method
    group = getattr(getattr(method, "structure", None), "group", None)
    starts = type(getattr(method, "init", None)).__name__
    return str(group() if group else ""), starts, spec.train.max_steps, spec.train.batch_size


def _even(runs: Sequence[str], most: int) -> Iterator[list[str]]:
    """Cut into as few parts as go, whose sizes differ by one at most."""
    count = -(-len(runs) // most)
    short, longer = divmod(len(runs), count)
    at = 0
    for i in range(count):
        size = short + (i < longer)
        yield list(runs[at : at + size])
        at += size


def _fitting(
    runs: Sequence[str], specs: Mapping[str, RunSpec], peak: Peak | None, limit_gib: float | None
) -> Iterable[list[str]]:
    """One pack, or halves of it until each fits."""
    if len(runs) == 1 or limit_gib is None or peak is None:  # one run is not halved, so it need not be weighed
        return [list(runs)]
    if peak([specs[run] for run in runs]) <= limit_gib * 2**30:
        return [list(runs)]
    middle = -(-len(runs) // 2)
    halves = (runs[:middle], runs[middle:])
    return [pack for half in halves for pack in _fitting(half, specs, peak, limit_gib)]


def whys(specs: Mapping[str, RunSpec]) -> list[str]:
    """Why a study has more than one pack however few its runs: lines for the reader of a plan."""
    lines = []
    alone = [spec for spec in specs.values() if not spec.method.packs]
    for name, same in groupby(sorted(alone, key=lambda s: s.method.name), key=lambda s: s.method.name):
        lines.append(f"{len(list(same))} runs of {name} have packs of their own: it trains what pack-mates would share")
    distinct = {(id(s.model), id(s.adapter), id(s.eval)): s for s in specs.values() if s.method.packs}
    packing = list(distinct.values())
    for what, pick in _DIFFERENCES.items():
        found = {json.dumps(pick(spec), sort_keys=True) for spec in packing}
        if len(found) > 1:
            lines.append(f"{len(found)} choices of {what} have no pack in common")
    return lines


_DIFFERENCES: dict[str, Callable[[RunSpec], Any]] = {
    "model": lambda spec: _written(spec.model),
    "adapter.targets": lambda spec: spec.adapter.targets,
    "adapter.compute_dtype": lambda spec: spec.adapter.compute_dtype,
    "eval.tasks": lambda spec: {name: _written(task) for name, task in spec.eval.tasks.items()},
}
