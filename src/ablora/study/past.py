"""What run folders that are there already tell a plan: which of its runs were done under an older revision, and how
long runs like its own took."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ablora.spec import RunSpec
from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.disk import looks
from ablora.study.parts import Parts
from ablora.study.plan import Plan
from ablora.tree import to_tree

MOST = 2000
"""Folders that are no part of the plan and are looked at: the newest ones."""
ENOUGH = 5
"""Timed runs of one kind that are read."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one run took: its share of its pack's time."""

    step_s: float
    look_s: float
    """Of all tasks of one evaluation."""
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class Hours:
    """Processor or GPU time that a plan's missing runs will take, by runs that were timed."""

    by_device: Mapping[str, float] = field(default_factory=dict)
    """Hours of a GPU, or of one processor core, by the device's name."""
    timed: int = 0
    """Runs that are counted."""
    unknown: int = 0
    """Runs like which none was timed."""


class Past:
    """The run folders beside a plan's own, read once."""

    def __init__(self, roots: Roots, plan: Plan):
        self.roots, self.plan = roots, plan
        self._others = list(_others(roots, plan))

    def stale(self, missing: Collection[str]) -> dict[str, str]:
        """Runs that are missing and whose specification is done in a folder of another id, by id: an older revision of
        the code, or other content of data or weights. A folder is compared in full only if it looks like one."""
        specs = [self.plan.specs[run] for run in missing] if self._others else []
        wanted = {_short(to_tree(spec.train), spec.seed, spec.rank) for spec in specs}
        parts, out = Parts(), {}
        for folder, tree in self._others:
            if _short(tree.get("train"), tree.get("seed"), tree.get("rank")) not in wanted:
                continue
            try:
                today = parts.run_id(parts.spec(parts.shared(tree)))
            except (ValueError, OSError):
                continue  # an axis value that is gone: nothing that is planned today
            if today in missing and folder.result.exists():
                out[today] = folder.id
        return out

    def hours(self, missing: Collection[str]) -> Hours:
        """From each missing run's steps and evaluations, and the median pace of runs of its kind: one base, method,
        rank, data set, batch and evaluation. Neither loading a base nor decomposing it is in it."""
        if not missing or not self.roots.runs.is_dir():
            return Hours(unknown=len(missing))
        texts: dict[int, str] = {}
        kinds = {run: _kind(spec, texts) for run, spec in self.plan.specs.items()}
        paces = self._paces(kinds, {kinds[run] for run in missing})
        spent: dict[str, float] = {}
        timed = [run for run in missing if paces[kinds[run]]]
        for run in timed:
            device, hours = _expected(self.plan.specs[run], paces[kinds[run]])
            spent[device] = spent.get(device, 0.0) + hours
        return Hours(spent, len(timed), len(missing) - len(timed))

    def _paces(self, kinds: Mapping[str, str], wanted: Collection[str]) -> dict[str, list[Pace]]:
        out: dict[str, list[Pace]] = {kind: [] for kind in wanted}
        own = ((folder_of(self.roots, run), kind) for run, kind in kinds.items())
        for folder, kind in (*own, *((folder, _kind_of(tree)) for folder, tree in self._others)):
            if len(out.get(kind, [None] * ENOUGH)) < ENOUGH and (pace := pace_of(folder)) is not None:
                out[kind].append(pace)
        return out


def _expected(spec: RunSpec, paces: Sequence[Pace]) -> tuple[str, float]:
    """The device and its hours."""
    wall_s = spec.train.max_steps * median(pace.step_s for pace in paces)
    wall_s += looks(spec) * median(pace.look_s for pace in paces)
    cores = paces[0].threads if paces[0].device.startswith("cpu") else 1
    return paces[0].device, cores * wall_s / 3600


def _short(train: Any, seed: Any, rank: Any) -> str:
    return json.dumps([train, seed, rank], sort_keys=True)


def pace_of(folder: RunFolder) -> Pace | None:
    """Of a run that is done; None where it was timed too little, or in several processes, whose clocks begin anew."""
    try:
        records, spec = list(lines.read(folder.timing)), folder.read_spec()
        start = atomic.read_json(folder.env)["starts"][-1]
        walls = [record["wall_s"] for record in records]
        last, runs = records[-1], max(record["pack"] for record in records)
        if not folder.result.exists() or walls != sorted(walls) or not last["step"]:
            return None
        training_s = last["tokens"] / last["tokens_per_s"]
        apart_s = max(0.0, last["wall_s"] - training_s) / looks(spec)
        return Pace(training_s / last["step"] / runs, apart_s / runs, start["device"], start["threads"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return None


def _kind(spec: RunSpec, texts: dict[int, str]) -> str:
    """What runs have in common that take equally long."""
    parts = [getattr(spec, name) for name in PARTS]
    for part in parts:
        if id(part) not in texts:
            texts[id(part)] = json.dumps(_timing(to_tree(part)), sort_keys=True)
    return _joined((texts[id(part)] for part in parts), spec.rank)


PARTS = ("model", "method", "dataset", "adapter", "eval", "train")
SHAPE = ("batch_size", "micro_batch", "max_tokens", "optimizer")
"""What of a recipe decides the time of a step."""
NAMES = ("name", "at_start", "every")
"""What decides none."""


def _timing(tree: Mapping[str, Any]) -> dict[str, Any]:
    keys = SHAPE if "max_steps" in tree and "lr" in tree else tree.keys() - set(NAMES)
    return {key: tree[key] for key in keys if key in tree}


def _kind_of(tree: Mapping[str, Any]) -> str:
    try:
        return _joined([json.dumps(_timing(tree[key]), sort_keys=True) for key in PARTS], tree["rank"])
    except (LookupError, AttributeError, TypeError):
        return ""


def _joined(texts: Iterable[str], rank: int | None) -> str:
    return " ".join([*texts, str(rank)])


def _others(roots: Roots, plan: Plan) -> Iterator[tuple[RunFolder, Mapping[str, Any]]]:
    """Folders that are no part of the plan, the newest first, with their trees."""
    try:
        with os.scandir(roots.runs) as found:
            entries = [(entry.stat().st_mtime_ns, entry.path) for entry in found if entry.name not in plan.specs]
    except OSError:
        return
    for _, path in sorted(entries, reverse=True)[:MOST]:
        folder = RunFolder(Path(path))
        try:
            yield folder, folder.read_tree()
        except (OSError, ValueError):
            continue
