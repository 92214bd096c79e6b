"""`ablora plan`: what a command would do, and nothing done."""

from collections.abc import Iterator, Sequence

from ablora.store.roots import Roots
from ablora.study.cell import Cell
from ablora.study.execution import Execution
from ablora.study.manifest import merged, study_folder
from ablora.study.plan import Plan, derived_name, make, method_name
from ablora.study.reconcile import reconcile
from ablora.study.status import counts


def describe(cells: Sequence[Cell], execution: Execution) -> Iterator[str]:
    """Lines of text: cells, which of them are one run, what is done, packs, and trainable parameters."""
    roots = Roots.from_environment()
    plan = make(cells)
    study = study_folder(roots, execution.study or derived_name(plan))
    rows = merged(study.rows(), plan.rows, study.name)
    gap = reconcile(roots, rows)
    duplicates = len(rows) - len(plan.specs)
    yield f"study {study.name}{' (exists)' if study.manifest.exists() else ''}"
    yield f"cells: {len(rows)}, of which {duplicates} are the same run as an earlier one"
    yield from _duplicates(plan)
    yield f"runs: {counts(gap.found)}"
    place = type(execution.cluster).__name__.lower()
    yield f"to run: {sum(map(len, gap.packs))} runs in {len(gap.packs)} packs ({place})"
    yield "trainable parameters:"
    for (method, rank), count in sorted(_parameters(plan).items(), key=str):
        yield f"  {method:<16} rank {rank}: {count}"


def _duplicates(plan: Plan) -> Iterator[str]:
    first = {row.id: row.labels for row in reversed(plan.rows)}
    for row in plan.rows:
        if row.duplicate_of is not None:
            named = [
                " ".join(f"{key}={value}" for key, value in labels.items()) for labels in (row.labels, first[row.id])
            ]
            yield f"  {row.id}  {named[0]}  is  {named[1]}"


def _parameters(plan: Plan) -> dict[tuple[str, int | None], str]:
    found: dict[tuple[str, int | None], set[int]] = {}
    for run, spec in plan.specs.items():
        found.setdefault((method_name(spec), spec.rank), set()).add(plan.parameters[run])
    return {key: " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) for key, counts in found.items()}
