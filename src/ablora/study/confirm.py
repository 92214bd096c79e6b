"""Tune, then confirm: each arm again with fresh seeds, at the value of one axis that did best with the tuning seeds.

A rate that is chosen and reported on the same runs looks better than it is, and a method with more rates to choose from
looks better still. So the sweep's grid tunes, on a validation split, and only the confirming runs are reported.

confirm.json   {"schema", "axis", "metric", "seeds", "candidates": [{"id", "labels", "method", "spec"}]}: every run that
               may be chosen, composed and checked before the first one is queued, so that going on needs no
               configuration files; what was chosen stands in manifest.jsonl with the word "confirm"
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ablora.spec import BadInput, RunSpec, check
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import create, folder_of
from ablora.study.execution import execution_of
from ablora.study.manifest import Row, StudyFolder, merged
from ablora.study.plan import Plan
from ablora.study.status import failure_class_of, standings
from ablora.tree import build, to_tree

TUNE, CONFIRM = "tune", "confirm"
"""The two words of a manifest's `why` where a study has this protocol."""
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirm:
    """The block `sweep.confirm` of a sweep file."""

    seeds: tuple[int, ...]
    """Fresh ones: none of them may be a tuning seed."""
    axis: str = "train.lr"
    metric: str = "validation_answer_loss_nats"
    """Of result.json; the least mean over the tuning seeds is best."""

    def __post_init__(self) -> None:
        check(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", self.seeds, "at least one seed, none of them twice")


class Candidate(NamedTuple):
    """A run that confirms, if its arm chooses its value."""

    row: Row
    spec: Mapping[str, Any]
    """The tree that `ablora.tree.build` reads."""


class Arm(NamedTuple):
    """What is tuned and confirmed: the cells that differ in the tuned axis and the seed alone."""

    labels: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, row: Row, axis: str) -> "Arm":
        return cls(tuple((key, str(value)) for key, value in row.labels.items() if key not in (axis, "seed")))

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.labels) or "the study's one arm"


def require_fresh(confirm: Confirm, plan: Plan) -> None:
    """Refuse a tuning seed among the fresh ones."""
    tuning = sorted({plan.specs[row.id].seed for row in plan.rows if row.why == TUNE})
    legal = f"seeds that tuning does not use ({', '.join(map(str, tuning))})"
    check(not set(tuning) & set(confirm.seeds), "sweep.confirm.seeds", list(confirm.seeds), legal)


def asked(plan: Plan, old: Sequence[Row]) -> list[Row]:
    """What the manifest should hold: the grid, and of the candidates those that were chosen before."""
    chosen = {_cell(row) for row in old if row.why == CONFIRM}
    grid = [row for row in plan.rows if row.why != CONFIRM]
    first: dict[tuple[str, ...], Row] = {}
    for row in plan.rows:
        if row.why == CONFIRM and _cell(row) in chosen:
            first.setdefault(_cell(row), row)
    return [*grid, *first.values()]


def _cell(row: Row) -> tuple[str, ...]:
    """A run under its labels: blocks of a grid may overlap, and then hold a cell twice."""
    return row.id, *(f"{key}={value}" for key, value in row.labels.items())


def write(study: StudyFolder, confirm: Confirm, plan: Plan) -> None:
    """Freeze the protocol and its candidates."""
    candidates = [{"id": row.id, "labels": dict(row.labels), "method": row.method, "spec": to_tree(plan.specs[row.id])}
                  for row in plan.rows if row.why == CONFIRM]  # fmt: skip
    atomic.write_json(study.confirm, {"schema": SCHEMA, **asdict(confirm), "candidates": candidates})


def read(study: StudyFolder) -> tuple[Confirm, list[Candidate]] | None:
    """The protocol and its candidates; None where the study has none."""
    if not study.confirm.exists():
        return None
    found = atomic.read_json(study.confirm)
    try:
        confirm = Confirm(seeds=tuple(found["seeds"]), axis=found["axis"], metric=found["metric"])
        rows = [Candidate(Row(c["id"], c["labels"], c["method"], 0, CONFIRM), c["spec"]) for c in found["candidates"]]
    except (KeyError, TypeError) as error:
        legal = "a protocol; move it away and give the command again"
        raise atomic.Corrupted(str(study.confirm), str(error), legal) from error
    return confirm, rows


def advance(roots: Roots, study: StudyFolder) -> list[Row] | None:
    """Add the confirming runs of every arm whose tuning is over; the grown manifest, or None if nothing was added."""
    protocol = read(study)
    if protocol is None:
        return None
    confirm, candidates = protocol
    with study.lock():
        rows = study.rows()
        new = list(_chosen(roots, confirm, candidates, rows))
        if not new:
            return None
        specs = {candidate.row.id: build(candidate.spec, RunSpec) for candidate in new}
        for spec in specs.values():
            create(roots, spec)
        plan = study.read_plan()
        execution = execution_of({**plan["execution"], "study": study.name})
        grown = merged(rows, [*rows, *(candidate.row for candidate in new)], study.name, execution.pack(specs))
        study.write(grown, plan["overrides"], plan["execution"])
    return grown


def _chosen(
    roots: Roots, confirm: Confirm, candidates: Sequence[Candidate], rows: Sequence[Row]
) -> Iterator[Candidate]:
    have = {_cell(row) for row in rows if row.why == CONFIRM}
    best = {arm: _best(roots, confirm, own) for arm, own in _arms(rows, confirm).items()}
    for candidate in candidates:
        arm = Arm.of(candidate.row, confirm.axis)
        value = best.get(arm)
        cell = _cell(candidate.row)
        if value is not None and candidate.row.labels[confirm.axis] == value and cell not in have:
            have.add(cell)
            yield candidate


def _arms(rows: Sequence[Row], confirm: Confirm) -> dict[Arm, list[Row]]:
    """The tuning cells of each arm."""
    out: dict[Arm, list[Row]] = {}
    for row in rows:
        if row.why == TUNE:
            out.setdefault(Arm.of(row, confirm.axis), []).append(row)
    return out


def _best(roots: Roots, confirm: Confirm, rows: Sequence[Row]) -> Any:
    """The value that did best; None while any tuning run may still end, or may end otherwise when tried again.

    Among the values with the most finished seeds (a seed that diverged has not finished), the least mean.
    """
    if _open(roots, rows):
        return None
    scores: dict[Any, list[float]] = {}
    for row in rows:
        folder = folder_of(roots, row.id)
        own = scores.setdefault(row.labels[confirm.axis], [])
        if folder.result.exists():
            own.append(_score(folder.read_result()["metrics"], confirm))
    merit = {v: (-len(own), sum(own) / len(own) if own else math.inf) for v, own in scores.items()}
    best = min(merit, key=lambda value: merit[value])
    return best if scores[best] else None


def _open(roots: Roots, rows: Sequence[Row]) -> list[str]:
    """The tuning runs that are neither done nor diverged."""
    found = standings(roots, rows)
    return [run for run, standing in found.items()
            if standing.state != "done"
            and not (standing.state == "failed" and failure_class_of(folder_of(roots, run)) == "diverged")]  # fmt: skip


def _score(metrics: Mapping[str, float], confirm: Confirm) -> float:
    if confirm.metric not in metrics:
        raise BadInput("sweep.confirm.metric", confirm.metric, f"a metric of the tuning runs: {', '.join(metrics)}")
    return metrics[confirm.metric]


def outlook(roots: Roots, study: StudyFolder, rows: Sequence[Row]) -> list[str]:
    """Lines on what is still to be confirmed, and what keeps it."""
    protocol = read(study)
    if protocol is None:
        return []
    confirm, _ = protocol
    confirmed = {Arm.of(row, confirm.axis) for row in rows if row.why == CONFIRM}
    waiting = {arm: own for arm, own in _arms(rows, confirm).items() if arm not in confirmed}
    lines = []
    for arm, own in waiting.items():
        left = _open(roots, own)
        why = f"{len(left)} tuning runs are not over" if left else "no tuning run of it finished"
        lines.append(f"not confirmed: {arm}: {why}")
    return lines
