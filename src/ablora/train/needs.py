"""What runs need of the caches before their first step: tokens, calibration statistics, decompositions.

A need is named by all that decides it and no more, so that the runs of a study that differ in seed or recipe have the
same ones. What was made for a need is noted in prepared/<key>.json with its files: whether it is there is seen without
reading a weight.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablora.evals._base import TEXT
from ablora.method.init._base import Brought, DataDriven
from ablora.method.layer import Layer
from ablora.method.lowrank import LowRank
from ablora.method.member import Member, wanted
from ablora.method.structure._reallocates import reallocating
from ablora.method.targets import find_targets
from ablora.models.base import skeleton
from ablora.spec import RunSpec, canonical
from ablora.spectra import library, statistics
from ablora.store import atomic
from ablora.train import tokens

SCHEMA = 1
REVISIONS = (tokens.REVISION, statistics.REVISION, library.REVISION)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A split, tokenised for a base."""

    key: str
    spec: RunSpec
    split: str
    max_items: int | None

    def __str__(self) -> str:
        return f"tokens of {self.spec.dataset.name}, {self.split}"


@dataclass(frozen=True, slots=True)
class Decompositions:
    """What the start of a run's factors asks to know of the base, and of its data."""

    key: str
    spec: RunSpec

    def __str__(self) -> str:
        return f"start of {self.spec.method.name} at rank {self.spec.rank}"


Need = Tokens | Decompositions


def needs_of(specs: Sequence[RunSpec]) -> dict[str, Need]:
    """What the runs need, each once, by its key."""
    out: dict[str, Need] = {}
    seen: set[tuple[Any, ...]] = set()
    seeded: dict[tuple[Any, ...], bool] = {}
    for spec in specs:  # cells of a question share their parts
        start = (id(spec.method), id(spec.model), id(spec.adapter), spec.rank)
        if start not in seeded:
            seeded[start] = is_seeded(spec)
        data = (id(spec.dataset), id(spec.eval), id(spec.train))
        shared = (*start, *data, spec.seed if seeded[start] else None)
        if shared not in seen:
            seen.add(shared)
            out |= {need.key: need for need in _needs(spec) if need.key not in out}
    return out


def missing(needs: Iterable[Need], cache: Path) -> list[Need]:
    """Those that were never prepared, or whose files are gone."""
    return [need for need in needs if not files_of(need, cache)]


def files_of(need: Need, cache: Path) -> list[Path]:
    """The files of a need; none unless all of them are there."""
    try:
        names = atomic.read_json(_note(need, cache))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    found = [cache / name for name in names]
    return found if all(path.exists() for path in found) else []


def note(need: Need, files: Iterable[Path], cache: Path) -> None:
    """Write down what a need has been made into."""
    names = sorted(str(path.relative_to(cache)) for path in files)
    atomic.write_json(_note(need, cache), {"schema": SCHEMA, "need": str(need), "files": names})


def _note(need: Need, cache: Path) -> Path:
    return cache / "prepared" / f"{need.key}.json"


def _needs(spec: RunSpec) -> Iterator[Need]:
    splits = {("train", None): None}
    if (structure := reallocating(spec.method)) is not None:
        splits[structure.probe.split, None] = None
    splits |= {(task.split, task.max_items): None for task in spec.eval.tasks.values() if task.split != TEXT}
    for split, most in splits:
        yield Tokens(_key(spec, ["tokens", split, most, _data(spec)]), spec, split, most)
    if (asked := _start(spec)) is not None:
        yield Decompositions(_key(spec, ["start", *asked]), spec)


def _data(spec: RunSpec) -> list[Any]:
    return [canonical(spec.dataset), spec.train.max_tokens]


def _start(spec: RunSpec) -> list[Any] | None:
    """What decides the decompositions of a run; None where its start asks for none."""
    method = spec.method
    if not isinstance(method, LowRank) or not decomposes(spec):
        return None
    data = _data(spec) if isinstance(method.init, DataDriven) else None
    seed = spec.seed if is_seeded(spec) else None
    factors = canonical(method.init), method.structure.experts, canonical(method.scaling), spec.rank
    return [*factors, spec.adapter.targets, data, seed]


def decomposes(spec: RunSpec) -> bool:
    """Whether a run's start asks for singular triplets, of its weights or of what its data give."""
    if not isinstance(spec.method, LowRank):
        return False
    return isinstance(spec.method.init, DataDriven) or any(True for _ in indices_of(spec, _skeleton(spec)))


def is_seeded(spec: RunSpec) -> bool:
    """Whether the triplets depend on the run's seed, as random ones do."""
    if not isinstance(spec.method, LowRank) or isinstance(spec.method.init, DataDriven):
        return False
    layers = _skeleton(spec)
    first = next(indices_of(spec, layers), None)
    other = next(indices_of(spec, layers, seed=spec.seed + 1), None)
    return first is not None and other is not None and first[1].tolist() != other[1].tolist()


def indices_of(spec: RunSpec, layers: dict[str, Layer], seed: int | None = None) -> Iterator[tuple[Layer, Any]]:
    """The layers whose weights a start decomposes, each with the triplets that it asks for."""
    method, seed = spec.method, spec.seed if seed is None else seed
    member = Member(method, spec.rank or 0, spec.adapter, seed)
    for name, layer in layers.items():
        if (found := wanted(name, layer, member, _rank(method.init, name, member.rank))) is not None:
            yield layer, found


def _rank(init: Any, module: str, rank: int) -> int:
    """Directions in one module: the run's, or those of what was trained before."""
    return init.rank(module) if isinstance(init, Brought) else rank


def _skeleton(spec: RunSpec) -> dict[str, Layer]:
    return find_targets(skeleton(spec.model.folder), spec.adapter.targets)


def _key(spec: RunSpec, asked: list[Any]) -> str:
    text = json.dumps([REVISIONS, canonical(spec.model), *asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
