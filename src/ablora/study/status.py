"""Where each run stands: from disk, the host, and for what was sent to SLURM from its one answer."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablora.dispatch.queue import Place, Queue, queue_of
from ablora.spec import check
from ablora.store import atomic
from ablora.store.claims import alive_here, is_held, latest
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, State, folder_of
from ablora.study.manifest import Row, StudyFolder
from ablora.study.parts import Parts

PRUNED = "pruned"
"""Of a run that a tuner gave up: what the manifest says of it, and its state where nobody else wants it whole."""
ORDER: tuple[State, ...] = ("done", "pruned", "running", "queued", "planned", "lost", "failed", "stale")


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of one run, and in a few words what there is to say about it."""

    state: State
    detail: str = ""


def standing(folder: RunFolder, queue: Queue | None = None) -> Standing:
    """The state of a run. Host and SLURM are asked before the disk: a run that ends in between is seen as done. A look
    at the folder's names before that tells those apart that are done already or were never begun, which most are.

    planned: nobody runs it; with a step, it was stopped there and goes on from its checkpoint.
    queued: SLURM has a task for it that has not begun with it, or that was requeued.
    lost: a process claimed it, is gone, and left neither result nor failure, or its task ended before it began with it;
    the same command resumes it. SLURM's word for why stands in front: node_failure, timeout, preempted.
    failed: what it wrote down itself, or cancelled or out_of_memory by SLURM.
    """
    names = _names(folder)
    if folder.result.name in names:
        return Standing("done")
    place = queue.place(folder.id) if queue else None
    if folder.failure.name not in names and not any(name.startswith("claim.") for name in names):
        return _unbegun(place)
    held = is_held(folder, queue.alive if queue else alive_here)
    if folder.result.exists():
        return Standing("done")
    if held:
        return Standing("running", last_step(folder))
    if folder.failure.exists():
        return Standing("failed", failure_class_of(folder))
    if place is not None and (found := _by_slurm(place, last_step(folder))) is not None:
        return found
    generation = latest(folder)
    released = generation < 0 or (folder.path / f"claim.{generation}.released").exists()
    return Standing("planned" if released else "lost", last_step(folder))


def _unbegun(place: Place | None) -> Standing:
    """Of a run that nobody ever claimed. A task may be through without it: it was stopped before, or never executed at
    all, which SLURM (22.05) calls COMPLETED with exit code 0 and takes the node out of use."""
    if place is None:
        return Standing("planned")
    return _by_slurm(place, "") or Standing("planned", f"{place.detail} and had not begun with it")


def _names(folder: RunFolder) -> list[str]:
    try:
        return os.listdir(folder.path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _by_slurm(place: Place, step: str) -> Standing | None:
    """What SLURM knows of a run that nobody runs; None where it does not change what the disk says."""
    if place.unprepared:
        return Standing("planned", place.detail)
    if place.live:
        return Standing("queued", ", ".join(filter(None, (place.detail, step))))
    if place.is_final:
        return Standing("failed", str(place.ended))
    if place.ended is not None or not place.detail.endswith("COMPLETED"):
        return Standing("lost", ", ".join(filter(None, (place.ended or "", step, place.detail))))
    return None


def standings(roots: Roots, rows: Sequence[Row], queue: Queue | None = None) -> dict[str, Standing]:
    """By run id, each run once. 1,000 runs take 0.1 s: no specification is read."""
    found = {run: standing(folder_of(roots, run), queue) for run in dict.fromkeys(row.id for row in rows)}
    given_up = pruned(rows)
    return {run: as_wanted(own, run in given_up) for run, own in found.items()}


def pruned(rows: Sequence[Row]) -> set[str]:
    """The runs that a tuner gave up and that no cell of the study wants whole."""
    return {row.id for row in rows if row.why == PRUNED} - {row.id for row in rows if row.why != PRUNED}


def as_wanted(found: Standing, given_up: bool) -> Standing:
    """A run's standing in a study: one that was given up waits for nothing, whatever its folder looks like."""
    return Standing(PRUNED, found.detail) if given_up and found.state in ("planned", "lost") else found


def study_standings(roots: Roots, study: StudyFolder) -> dict[str, Standing]:
    """The same of a study as it is on disk, with what SLURM says of it."""
    queue = queue_of(roots, study.path)  # before the disk
    if queue is not None and queue.trouble:
        print(f"ablora: SLURM does not answer ({queue.trouble}); what it has is shown as it was", file=sys.stderr)
    return standings(roots, study.rows(), queue)


def with_stale(roots: Roots, found: Mapping[str, Standing]) -> dict[str, Standing]:
    """The same with `stale` for done runs to which today's code or data gives another id.

    Builds every specification and hashes data and weights again, each part that runs share once; that imports torch, so
    it is asked for with --check-stale and is no part of a plain status.
    """
    parts = Parts()
    return {run: _staleness(folder_of(roots, run), parts) or state if state.state == "done" else state
            for run, state in found.items()}  # fmt: skip


def _staleness(folder: RunFolder, parts: Parts) -> Standing | None:
    try:
        today = parts.run_id(parts.spec(parts.shared(folder.read_tree())))
        return Standing("stale", "another id today") if today != folder.id else None
    except ValueError as error:  # an axis value that is gone, a field renamed, data moved away
        return Standing("stale", str(error))


def failure_class_of(folder: RunFolder) -> str:
    return str(failure_of(folder)["class"])


def failure_of(folder: RunFolder) -> Mapping[str, object]:
    """The failure record; one that cannot be read is a failure all the same, and SLURM's word may not be there yet."""
    try:
        record = folder.read_failure() if folder.failure.exists() else {}
    except atomic.Corrupted as error:
        record = {"message": str(error)}
    return {"class": "bug", "message": "", **(record if isinstance(record, dict) else {})}


def require_done(roots: Roots, study: StudyFolder) -> None:
    """Refuse a study of which no run is done yet, with its counts and what to type."""
    found = standings(roots, study.rows())
    next_ = f"`ablora resume {study.name}` goes on with it, `ablora watch {study.name}` shows how far it is"
    legal = f"a study with a finished run; this one has {counts(found)}. {next_}"
    check(any(standing.state == "done" for standing in found.values()), "STUDY", study.name, legal)


def last_step(folder: RunFolder) -> str:
    """The last step in metrics.jsonl, read from its end; empty before the first."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            tail = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(tail):
        try:
            return f"step {json.loads(line)['step']}"
        except (ValueError, KeyError, TypeError):
            continue  # a torn line, or the cut-off first one
    return ""


def table(study: StudyFolder, rows: Sequence[Row], found: Mapping[str, Standing]) -> Iterator[str]:
    """Lines of text: one per run with its labels, then the counts per state."""
    shown = {}
    for row in rows:
        shown.setdefault(row.id, " ".join(f"{key}={value}" for key, value in row.labels.items()) or row.method)
    width = max((len(standing.detail) for standing in found.values()), default=0)
    for run, labels in shown.items():
        yield f"{run}  {found[run].state:<8} {found[run].detail:<{width}}  {labels}"
    yield f"{study.name}: {counts(found)}"


def counts(found: Mapping[str, Standing]) -> str:
    number = Counter(standing.state for standing in found.values())
    parts = [f"{number[state]} {state}" for state in ORDER if number[state]]
    return f"{len(found)} runs" + (f" ({', '.join(parts)})" if parts else "")
