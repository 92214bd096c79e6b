"""Reconcile a question with the run folders: plan, freeze, send what is missing, and say how it went."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ablora.dispatch.base import Interrupted, Job
from ablora.dispatch.queue import Queue, queue_of
from ablora.store.claims import is_held_beside
from ablora.store.roots import Roots
from ablora.store.run_folder import create, folder_of
from ablora.study import confirm as confirmation
from ablora.study.cell import Cell
from ablora.study.confirm import Confirm
from ablora.study.confounds import require_none
from ablora.study.execution import Execution, execution_of
from ablora.study.manifest import Row, StudyFolder, existing_study, merged, study_folder
from ablora.study.plan import Plan, derived_name, make
from ablora.study.reconcile import Gap, clear_failures, reconcile
from ablora.study.report import report
from ablora.study.settle import settle, settled_now
from ablora.study.status import counts

INTERRUPTED = 130
LOOK_S = 0.5


def answer(
    cells: Sequence[Cell],
    execution: Execution,
    arguments: Sequence[str],
    sweeping: bool,
    again: bool = False,
    confirm: Confirm | None = None,
    strict: bool = False,
) -> int:
    """Run what the cells ask for and is not done yet; the exit code. Nothing is written before all of it is valid.

    `again`: what failed before is tried again. `strict`: what the plan lists of confounds is refused. With `confirm`,
    cells that say "confirm" are candidates: they run when tuning has chosen them.
    """
    roots = Roots.from_environment()
    plan = make(cells)
    if strict:
        require_none(plan)
    if confirm is not None:
        confirmation.require_fresh(confirm, plan)
    study = _study(roots, plan, execution, sweeping)
    rows = list(plan.rows) if study is None else _grown(study, plan, execution)
    queue = None if study is None else queue_of(roots, study.path)
    gap = reconcile(roots, rows, queue)  # for its complaints, before the first folder is made
    if gap.packs:
        execution.cluster.require_usable(len(gap.packs))
    roots.require_writable()
    for run in dict.fromkeys(row.id for row in rows):
        create(roots, plan.specs[run])
    if study is not None:
        with study.lock():
            rows = _grown(study, plan, execution)
            if confirm is not None:
                confirmation.write(study, confirm, plan)
            study.write(rows, arguments, execution.to_tree())
    if again:
        if queue is not None:
            settle(queue)
        clear_failures(roots, rows, None, queue)
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
    again = clear_failures(roots, study.rows(), only, settled_now(roots, study.path))
    print(f"{len(again)} failed runs are tried again", file=sys.stderr)
    return resume(name)


def submit(roots: Roots, study: StudyFolder | None, rows: Sequence[Row], execution: Execution) -> int:
    """Send what is missing and wait for it, and for what other processes of this host are at; the exit code.

    Workers outlive a controller that was killed; the same command then waits for their runs, and takes over those
    that they leave. No run is sent twice by one command: one that kills its process would do so for ever.
    """
    sent: set[str] = set()
    name, path = (study.name, study.path) if study else (None, None)
    try:
        while True:
            queue = drain(roots, path, rows, execution, sent, lambda packs: Job(packs, roots, name, execution.tracker))
            grown = None if study is None else confirmation.advance(roots, study)
            if grown is None:
                return report(roots, study, rows, queue)
            rows = grown
    except (Interrupted, KeyboardInterrupt):
        report(roots, study, rows, None if path is None else queue_of(roots, path))
        return INTERRUPTED


def drain(
    roots: Roots,
    folder: Path | None,
    rows: Sequence[Row],
    execution: Execution,
    sent: set[str],
    job_of: Callable[[tuple[tuple[str, ...], ...]], Job],
) -> Queue | None:
    """Send what is missing of some rows and return when nothing of them is left to be sent or waited for.

    `folder`: where the place to run keeps what it needs. `sent` grows by what is sent.
    """
    while True:
        queue = None if folder is None else queue_of(roots, folder)
        if queue is not None:
            settle(queue)
        gap = reconcile(roots, rows, queue)
        if not sent:
            _announce(job_of(()).study, gap)
        packs = tuple(pack for pack in gap.packs if sent.isdisjoint(pack))
        if packs:
            job = job_of(packs)
            sent.update(job.runs)
            execution.cluster.drain(job, folder)
        elif not _wait_for_others(roots, gap) and not _follow(folder, gap, execution, job_of):
            return queue


def _follow(
    folder: Path | None, gap: Gap, execution: Execution, job_of: Callable[[tuple[tuple[str, ...], ...]], Job]
) -> bool:
    """Watch what an earlier command sent to SLURM, where this one's place to run watches."""
    runs = gap.having("queued") + gap.having("running")
    if folder is None or not runs:
        return False
    return execution.cluster.follow(job_of(tuple((run,) for run in runs)), folder)


def _grown(study: StudyFolder, plan: Plan, execution: Execution) -> list[Row]:
    """The study's cells, old and new."""
    old = study.rows()
    return merged(old, confirmation.asked(plan, old), study.name, execution.pack(plan.specs))


def _wait_for_others(roots: Roots, gap: Gap) -> bool:
    """Wait until no other process of this host holds a run; False if none did."""
    held = [folder for run in gap.found if is_held_beside(folder := folder_of(roots, run))]
    if held:
        print(f"ablora: waiting for {len(held)} runs that another process is at", file=sys.stderr)
    while any(map(is_held_beside, held)):
        time.sleep(LOOK_S)
    return bool(held)


def _study(roots: Roots, plan: Plan, execution: Execution, sweeping: bool) -> StudyFolder | None:
    """The study's folder. A single run belongs to one only if it is named, or where its place to run needs a folder."""
    if execution.study is None and not sweeping and not execution.cluster.needs_folder:
        return None
    return study_folder(roots, execution.study or derived_name(plan))


def _announce(study: str | None, gap: Gap) -> None:
    if study is not None:
        print(f"study {study}: {counts(gap.found)}", file=sys.stderr)
