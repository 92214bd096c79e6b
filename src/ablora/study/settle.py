"""Write down in run folders what only SLURM knows, before it forgets: that a run was cancelled or ran out of memory."""

import sys
import time
from dataclasses import replace
from pathlib import Path

from ablora.dispatch import submissions
from ablora.dispatch.queue import Place, Queue, queue_of
from ablora.dispatch.scheduler import NoAnswer
from ablora.store import atomic, lines
from ablora.store.claims import release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import SCHEMA, RunFolder, folder_of


def settled_now(roots: Roots, study: Path) -> Queue | None:
    """A study's queue, where it has one: SLURM asked now, however young its last answer is, and ends written down. For
    a command that is given because something has just ended."""
    queue = queue_of(roots, study)
    if queue is not None:
        settle(queue.look(now=True))
    return queue


def settle(queue: Queue) -> None:
    """Give a failure.json to every run whose task SLURM ended for good, unless somebody runs it.

    Before that, arrays that a dead sender left half sent are released or abandoned, and those are given up that wait
    for a preparation that did not end well. Under the lock of the submissions:
    of two controllers one writes, and a sender that lives is waited for. Killed in between, the next one goes on.
    """
    _mend(queue)
    if not _ended(queue):
        return
    with submissions.lock(queue.study):
        queue.look()
        by_record: dict[str, list[str]] = {}
        for run, place in _ended(queue).items():
            if _write(folder_of(queue.roots, run), place, queue):
                by_record.setdefault(queue.newest[run][0].name, []).append(run)
        for record in submissions.read(queue.study):
            if runs := by_record.get(record.name):
                submissions.write(queue.study, replace(record, settled=(*record.settled, *runs)))
        queue.look()


def _mend(queue: Queue) -> None:
    never = queue.never()
    if all(record.phase == "released" for record in queue.records) and not never:
        return
    try:
        with submissions.lock(queue.study):
            submissions.mend(queue.study)
            submissions.give_up(queue.study, never)
    except NoAnswer as error:
        print(f"ablora: SLURM does not answer ({error}); what was half sent counts as queued", file=sys.stderr)
    queue.look()


def _ended(queue: Queue) -> dict[str, Place]:
    places = {run: queue.place(run) for run in queue.newest}
    return {run: place for run, place in places.items() if place and not place.live and place.is_final}


def _write(folder: RunFolder, place: Place, queue: Queue) -> bool:
    """Whether the end is on disk now, as a failure or as what the run itself had written."""
    claim = take(folder, queue.alive)
    if claim is None:
        return False
    try:
        if not (folder.result.exists() or folder.failure.exists()):
            step = max((record.get("step", 0) for record in lines.read(folder.metrics)), default=0)
            record = {"schema": SCHEMA, "id": folder.id, "class": place.ended, "message": f"SLURM: {place.detail}"}
            atomic.write_json(folder.failure, {**record, "step": step, "traceback": ""})
            lines.append(folder.events, [{"time_s": time.time(), "state": "failed", "class": place.ended}])
    finally:
        release(claim)
    return True
