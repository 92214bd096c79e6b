"""The fair protocol: equal trials for every method, a range that is wide enough for each, then fresh seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ablora.spec import RunSpec
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.study.confirm import CONFIRM
from ablora.study.execution import Execution
from ablora.study.manifest import Row, StudyFolder, merged
from ablora.study.plan import method_name
from ablora.tree import to_tree
from ablora.tune.frozen import Arm, spec_of
from ablora.tune.settings import Fair
from ablora.tune.storage import Slot, Trials
from ablora.tune.verdict import SCHEMA, Verdict, verdicts


def extend(study: StudyFolder, trials: Trials, protocol: Fair) -> bool:
    """Decide every arm whose trials are over: its best value, a wider range, or that it stays an edge. True if there
    are new trials."""
    with study.lock():
        before = verdicts(study)
        after = {arm.name: decided(before.get(arm.name, Verdict()), scores(study, trials, i), protocol)
                 for i, arm in enumerate(trials.search.arms)}  # fmt: skip
        arms = {name: asdict(one) for name, one in after.items()}
        atomic.write_json(study.fair, {"schema": SCHEMA, "protocol": to_tree(protocol), "arms": arms})
    return any(after[name].values != before.get(name, Verdict()).values for name in after)


def scores(study: StudyFolder, trials: Trials, arm: int) -> dict[float, list[float]] | None:
    """The first objective of the arm's trials, by value of the tuned axis; None while one is not over.

    A trial that diverged is infinite, one that was pruned is left out.
    """
    out: dict[float, list[float]] = {}
    key = next(name for name, one in trials.search.by_name.items() if one.key != "seed")
    for number, point in enumerate(trials.points(trials.search.arms[arm])):
        folder = RunFolder(study.trials / str(Slot(arm, number)))
        if not folder.result.exists():
            return None
        own = out.setdefault(point[key], [])
        record = folder.read_result()
        if record["state"] != "pruned":
            own.append(record["values"][0] if record["state"] == "complete" else math.inf)
    return out


def decided(verdict: Verdict, found: Mapping[float, Sequence[float]] | None, protocol: Fair) -> Verdict:
    """One step on: the best value by the mean of its trials that were not pruned, if it is not on the border.

    How many of them were pruned does not count: that is chance where trials run one after another, for the first ones
    have nothing to be worse than.
    """
    if verdict.best is not None or found is None:
        return verdict
    best = min(found, key=lambda value: _mean(found[value]))
    if not math.isfinite(_mean(found[best])):
        return verdict
    low, high = min(found), max(found)
    if best not in (low, high):
        return replace(verdict, best=best)
    if verdict.extensions == protocol.extensions:
        return replace(verdict, best=best, edge=True)
    beyond = best / protocol.factor if best == low else best * protocol.factor
    # Six digits, as a user would write it: the value is part of what a run is.
    wider = (*verdict.values, float(f"{beyond:.6g}"))
    return replace(verdict, values=wider, extensions=verdict.extensions + 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.inf


def confirm(roots: Roots, study: StudyFolder, trials: Trials, protocol: Fair, execution: Execution) -> list[Row]:
    """The runs that confirm: the fresh seeds of every arm that has a best value of its own. They stand in the manifest,
    and each has a folder."""
    with study.lock():
        old = study.rows()
        found = verdicts(study)
        new: list[Row] = []
        specs: dict[str, RunSpec] = {}
        for arm in trials.search.arms:
            for row, spec in _confirming(arm, found[arm.name], trials, protocol):
                folder = create(roots, spec)
                specs[folder.id] = spec
                new.append(replace(row, id=folder.id))
        asked = [*(row for row in old if row.why != CONFIRM), *new]
        rows = merged(old, asked, study.name, execution.pack(specs))
        plan = study.read_plan()
        study.write(rows, plan["overrides"], plan["execution"])
    return [row for row in rows if row.why == CONFIRM]


def _confirming(arm: Arm, verdict: Verdict, trials: Trials, protocol: Fair) -> Iterator[tuple[Row, RunSpec]]:
    if verdict.best is None or verdict.edge:
        return
    names = {one.key: one.name for one in trials.search.space}
    for seed in protocol.seeds:
        values: dict[str, Any] = {names[protocol.axis]: verdict.best, names["seed"]: seed}
        spec = spec_of(arm, values)
        yield Row("", trials.search.labels(arm, values), method_name(spec), 0, CONFIRM), spec


def outlook(study: StudyFolder, trials: Trials) -> Iterator[str]:
    """Lines on what the protocol decided, and what keeps it."""
    found = verdicts(study)
    protocol = trials.search.protocol
    if protocol is None:
        return
    for arm in trials.search.arms:
        one = found.get(arm.name, Verdict())
        if one.best is None:
            yield f"not decided: {arm.name}: not all of its trials are over"
        elif one.edge:
            yield (f"edge: {arm.name}: best at {protocol.axis}={one.best}, the border of a range that was extended "
                   f"{one.extensions} times; it is not confirmed and not ranked")  # fmt: skip
        else:
            wider = f", after {one.extensions} extensions" if one.extensions else ""
            yield f"best: {arm.name}: {protocol.axis}={one.best}{wider}"
