"""Work through a job's packs in this process: claim, execute, and put a failure where it belongs: in its run."""

import errno
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from ablora.data._base import DataError
from ablora.dispatch.base import Interrupted, Job
from ablora.spec import BadInput, RunSpec
from ablora.store import atomic, lines
from ablora.store.claims import Alive, Claim, Fenced, alive_here, latest, release, take
from ablora.store.run_folder import FailureClass, RunFolder, State, folder_of
from ablora.track import make
from ablora.train.execute import execute, write_failure
from ablora.train.observe import Observer
from ablora.train.stop import Stopped

FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""torch raises a bare RuntimeError for memory of the host, and for some libraries' own on a GPU."""


def work(
    job: Job,
    observers: Sequence[Observer] = (),
    threads: int | None = None,
    seen: Mapping[str, int] | None = None,
    alive: Alive = alive_here,
) -> None:
    """Run every pack that nobody else has taken; a failing one never ends the others.

    `seen`: the claims there were when the job was sent (default: now). A run that was claimed since is left alone even
    if that process has died meanwhile: a run that kills its process must not kill every worker in turn. The next
    command finds it lost and resumes it.
    `alive`: who judges the owner of such a claim.
    Raises `Interrupted` when the process was told to stop.
    """
    seen = job.claims() if seen is None else seen
    watching = [*map(Guarded, observers), *_tracker(job)]
    for pack in job.packs:
        folders = [folder_of(job.roots, run) for run in pack]
        claims = [claim for folder in folders if (claim := _claim(folder, seen[folder.id], alive))]
        if claims:
            _run_pack(claims, job, watching, threads)


def _claim(folder: RunFolder, seen: int, alive: Alive) -> Claim | None:
    if _is_over(folder) or latest(folder) != seen:
        return None
    claim = take(folder, alive)
    if claim is not None and _is_over(folder):  # it ended between the look and the claim
        release(claim)
        return None
    return claim


def _is_over(folder: RunFolder) -> bool:
    return folder.result.exists() or folder.failure.exists()


def _run_pack(claims: Sequence[Claim], job: Job, observers: Sequence[Observer], threads: int | None) -> None:
    folders = [claim.folder for claim in claims]
    try:
        execute(folders, claims, job.roots, observers, threads)
    except (Stopped, KeyboardInterrupt) as stop:
        raise Interrupted from stop
    except Fenced as fenced:
        print(f"ablora: {fenced}; it goes on there", file=sys.stderr)
    except Exception as error:
        for claim in claims:
            if not _is_over(claim.folder):
                _fail(claim, error, observers)
    finally:
        for claim in claims:
            with suppress(OSError):  # a full disk; the claim then ends with this process
                release(claim)


def _fail(claim: Claim, error: Exception, observers: Sequence[Observer]) -> None:
    """Write down why a run failed; where even that cannot be written, say it, and the run shows as lost."""
    folder, kind = claim.folder, failure_class(error)
    try:
        claim.fence()
        lines.append(folder.events, [{"time_s": time.time(), "state": "failed", "class": kind}])
        write_failure(folder, kind, error, last_step(folder))
    except (OSError, Fenced) as second:
        print(f"ablora: run {folder.id}: {kind}: {error} (not recorded: {second})", file=sys.stderr)
        return
    for observer in observers:
        observer.finished(folder, "failed")


def failure_class(error: BaseException) -> FailureClass:
    """The word for what an exception means to the user; what has no word is our bug."""
    match error:
        case BadInput() | DataError():
            return "bad_input"
        case MemoryError() | torch.OutOfMemoryError():
            return "out_of_memory"
        case RuntimeError() if any(sign in str(error) for sign in OUT_OF_MEMORY):
            return "out_of_memory"
        case OSError(errno=number) if number in FULL:
            return "disk_full"
        case Exception() if "No space left on device" in str(error):  # safetensors loses the errno
            return "disk_full"
    return "bug"


def last_step(folder: RunFolder) -> int:
    """The last step that metrics.jsonl holds; 0 before the first."""
    with suppress(atomic.Corrupted):
        return max((record.get("step", 0) for record in lines.read(folder.metrics)), default=0)
    return 0


def _tracker(job: Job) -> list[Observer]:
    try:
        return [Guarded(make(job.tracker, job.study, job.roots))]
    except Exception as error:
        print(f"ablora: no tracking: {error}", file=sys.stderr)
        return []


class Guarded:
    """An observer whose errors are said once and end its watching, never the run."""

    def __init__(self, observer: Observer):
        self.observer: Observer | None = observer

    def _tell(self, name: str, *arguments: Any) -> None:
        if self.observer is None:
            return
        try:
            getattr(self.observer, name)(*arguments)
        except Exception as error:
            kind = type(self.observer).__name__
            print(f"ablora: {kind} stopped watching: {type(error).__name__}: {error}", file=sys.stderr)
            self.observer = None

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        self._tell("started", folder, spec, step)

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        self._tell("recorded", folder, record)

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        self._tell("timed", folder, record)

    def finished(self, folder: RunFolder, state: State) -> None:
        self._tell("finished", folder, state)
