"""`ablora plan`: what a command would do, and nothing done."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ablora.store.roots import Roots
from ablora.study.cell import Cell
from ablora.study.confirm import TUNE, Arm, Confirm, asked, require_fresh
from ablora.study.confounds import confounds, require_none
from ablora.study.cost import costs
from ablora.study.execution import Execution
from ablora.study.manifest import Row, merged, study_folder
from ablora.study.packing import whys
from ablora.study.past import Past
from ablora.study.plan import Plan, derived_name, make, method_name
from ablora.study.reconcile import reconcile
from ablora.study.status import counts

STALE = 4
"""Folders of stale runs that are named."""
Evidence = Callable[[Roots, str, Sequence[Mapping[str, Any]]], Iterable[str]]
"""Lines on what the cells of a study can show; from the analysis, which only the command line imports."""


def describe(
    cells: Sequence[Cell],
    execution: Execution,
    confirm: Confirm | None = None,
    evidence: Evidence | None = None,
    strict: bool = False,
) -> Iterator[str]:
    """Lines of text: cells, which of them are one run, what is done, packs, jobs, memory, disk, time, trainable
    parameters, in what compared cells differ beside the method, and what the seeds can show."""
    roots = Roots.from_environment()
    plan = make(cells)
    if strict:
        require_none(plan)
    study = study_folder(roots, execution.study or derived_name(plan))
    if confirm is not None:
        require_fresh(confirm, plan)
    rows = merged(study.rows(), asked(plan, study.rows()), study.name, execution.pack(plan.specs))
    gap = reconcile(roots, rows)
    duplicates = len(rows) - len({row.id for row in rows})
    yield f"study {study.name}{' (exists)' if study.manifest.exists() else ''}"
    yield f"cells: {len(rows)}, of which {duplicates} are the same run as an earlier one"
    yield from _duplicates(plan)
    yield f"runs: {counts(gap.found)}"
    past = Past(roots, plan)
    yield from _stale(past.stale({run for pack in gap.packs for run in pack}))
    yield from _second_stage(rows, confirm)
    place = type(execution.cluster).__name__.lower()
    packs = "1 pack" if len(gap.packs) == 1 else f"{len(gap.packs)} packs"
    yield f"to run: {sum(map(len, gap.packs))} runs in {packs} ({place})"
    yield from (f"  {line}" for line in whys(plan.specs) if execution.packing.runs > 1)
    yield from costs(plan, gap.packs, execution, past)
    yield "trainable parameters:"
    for (method, rank, budget), count in sorted(_parameters(plan).items(), key=str):
        yield f"  {method:<16} rank {rank}: {count}{budget}"
    if plan.at_most:
        yield "  at most: the data decide how many directions each module gets; result.json has what that came to"
    yield from _confounds(plan)
    if evidence is not None:
        yield from evidence(roots, study.name, [row.to_record() for row in plan.rows])


def _stale(found: Mapping[str, str]) -> Iterator[str]:
    if found:
        few = ", ".join([*found.values()][:STALE]) + (", ..." if len(found) > STALE else "")
        yield f"  {len(found)} of them done under an older revision of code, data or weights ({few}); they run again"


def _confounds(plan: Plan) -> Iterator[str]:
    found = confounds(plan)
    if found:
        yield "compared cells differ beside the method (--strict refuses them):"
    yield from (f"  {one}" for one in found)


def _second_stage(rows: Sequence[Row], confirm: Confirm | None) -> Iterator[str]:
    if confirm is not None:
        arms = len({Arm.of(row, confirm.axis) for row in rows if row.why == TUNE})
        seeds = ", ".join(map(str, confirm.seeds))
        yield (f"then confirm: {arms} arms at the {confirm.axis} of least {confirm.metric}, seeds {seeds}: "
               f"{arms * len(confirm.seeds)} runs, of which only these are reported")  # fmt: skip


def _duplicates(plan: Plan) -> Iterator[str]:
    first = {row.id: row.labels for row in reversed(plan.rows)}
    for row in plan.rows:
        if row.duplicate_of is not None:
            named = [
                " ".join(f"{key}={value}" for key, value in labels.items()) for labels in (row.labels, first[row.id])
            ]
            yield f"  {row.id}  {named[0]}  is  {named[1]}"


def _parameters(plan: Plan) -> dict[tuple[str, int | None, str], str]:
    """Trainable parameters by method, rank and, where one solved it, how far from which budget; where the data decide,
    those at equal ranks and the most there can be."""
    found: dict[tuple[str, int | None, str], list[tuple[int, int | None]]] = {}
    for run, spec in plan.specs.items():
        count, target = plan.parameters[run], plan.budgets.get(run)
        budget = "" if target is None else f" ({_of(count, target)})"
        found.setdefault((method_name(spec), spec.rank, budget), []).append((count, plan.at_most.get(run)))
    return {key: _said(counts) for key, counts in found.items()}


def _of(count: int, target: object) -> str:
    """How far parameters are from a budget of them; of another budget what it says itself."""
    return f"{(count - target) / target:+.1%} of the budget {target:,}" if isinstance(target, int) else str(target)


def _said(counts: Sequence[tuple[int, int | None]]) -> str:
    exact, bounds = [count for count, _ in counts], [bound for _, bound in counts if bound is not None]
    return _span(exact) + (f" at equal ranks, at most {_span(bounds)}" if bounds else "")


def _span(numbers: Sequence[int]) -> str:
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)}))
