"""Reconcile a question with the run folders: plan, freeze, send what is missing, and say how it went."""

import sys
from collections.abc import Sequence

from ablora.dispatch.base import Interrupted, Job
from ablora.store.roots import Roots
from ablora.store.run_folder import create
from ablora.study.cell import Cell
from ablora.study.execution import Execution, execution_of
from ablora.study.manifest import Row, StudyFolder, existing_study, merged, study_folder
from ablora.study.plan import Plan, derived_name, make
from ablora.study.reconcile import Gap, clear_failures, reconcile
from ablora.study.report import report
from ablora.study.status import counts

INTERRUPTED = 130


def answer(
    cells: Sequence[Cell], execution: Execution, arguments: Sequence[str], sweeping: bool, again: bool = False
) -> int:
    """Run what the cells ask for and is not done yet; the exit code. Nothing is written before all of it is valid.

    `again`: what failed before is tried again.
    """
    roots = Roots.from_environment()
    plan = make(cells)
    study = _study(roots, plan, execution, sweeping)
    rows = list(plan.rows) if study is None else merged(study.rows(), plan.rows, study.name)
    reconcile(roots, rows)  # for its complaints, before the first folder is made
    roots.require_writable()
    for spec in plan.specs.values():
        create(roots, spec)
    if study is not None:
        with study.lock():
            rows = merged(study.rows(), plan.rows, study.name)
            study.write(rows, arguments, execution.to_tree())
    if again:
        clear_failures(roots, rows, only=None)
    return submit(roots, study, rows, execution)


def resume(name: str) -> int:
    """Go on with a study from its manifest alone: configuration files may have changed or gone since."""
    roots = Roots.from_environment()
    study = existing_study(roots, name)
    execution = execution_of({**study.read_plan()["execution"], "study": name})
    return submit(roots, study, study.rows(), execution)


def retry(name: str, only: str | None) -> int:
    """Set the failures aside (all, or of one class) and go on with the study."""
    roots = Roots.from_environment()
    study = existing_study(roots, name)
    again = clear_failures(roots, study.rows(), only)
    print(f"{len(again)} failed runs are tried again", file=sys.stderr)
    return resume(name)


def submit(roots: Roots, study: StudyFolder | None, rows: Sequence[Row], execution: Execution) -> int:
    """Send what is missing and wait for it."""
    gap = reconcile(roots, rows)
    _announce(study, gap)
    job = Job(gap.packs, roots, study.name if study else None, execution.tracker)
    try:
        if job.packs:
            execution.cluster.drain(job, study.path if study else None)
    except (Interrupted, KeyboardInterrupt):
        report(roots, study, rows)
        return INTERRUPTED
    return report(roots, study, rows)


def _study(roots: Roots, plan: Plan, execution: Execution, sweeping: bool) -> StudyFolder | None:
    """The study's folder. A single run belongs to one only if it is named, or where its place to run needs a folder."""
    if execution.study is None and not sweeping and not execution.cluster.needs_folder:
        return None
    return study_folder(roots, execution.study or derived_name(plan))


def _announce(study: StudyFolder | None, gap: Gap) -> None:
    if study is not None:
        print(f"study {study.name}: {counts(gap.found)}", file=sys.stderr)
