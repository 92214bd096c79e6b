"""Work through a job's packs in this process: claim, execute, and put a failure where it belongs: in its run."""

import errno
import gc
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from ablora.data._base import DataError
from ablora.dispatch.base import Interrupted, Job
from ablora.spec import BadInput, RunSpec, micro_batch_matters
from ablora.store import atomic, lines
from ablora.store.claims import Alive, Claim, Fenced, alive_here, latest, release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import FailureClass, RunFolder, State, folder_of
from ablora.track import make
from ablora.train.execute import Judge, execute, write_failure
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
    observers = watching(job, observers)
    for pack in job.packs:
        folders = [folder_of(job.roots, run) for run in pack]
        claims = [claim for folder in folders if (claim := claim_of(folder, seen[folder.id], alive))]
        if claims:
            train_pack(claims, job.roots, observers, threads)


def watching(job: Job, observers: Sequence[Observer]) -> list[Observer]:
    """The observers, and the job's tracker; none of them can stop a run."""
    return [*map(Guarded, observers), *_tracker(job)]


def claim_of(folder: RunFolder, seen: int, alive: Alive) -> Claim | None:
    """This process's hold on what is not over and what nobody has taken since it was sent."""
    if _is_over(folder) or latest(folder) != seen:
        return None
    claim = take(folder, alive)
    if claim is not None and _is_over(folder):  # it ended between the look and the claim
        release(claim)
        return None
    return claim


def _is_over(folder: RunFolder) -> bool:
    return folder.result.exists() or folder.failure.exists()


@dataclass(frozen=True, slots=True)
class _Part:
    """Runs that train together now: a pack, or what was cut out of one."""

    claims: tuple[Claim, ...]
    most_examples: int | None = None


def train_pack(
    claims: Sequence[Claim],
    roots: Roots,
    observers: Sequence[Observer],
    threads: int | None,
    judge: Judge | None = None,
) -> None:
    """Train a pack, and release its claims; one that fails as a whole goes on in halves, until it can be told whose
    failure it is.

    A failure that names no run may be any one's, or that of all of them together (memory). The halves go on from
    their checkpoints, so what is done twice is at most what was done since.
    """
    waiting = [_Part(tuple(claims))]
    try:
        while waiting:
            part = waiting.pop(0)
            error = _attempt(part, roots, observers, threads, judge)
            if error is not None:
                waiting[:0] = _after(part, error, observers)
    finally:
        for claim in claims:
            with suppress(OSError):  # a full disk; the claim then ends with this process
                release(claim)


def _attempt(
    part: _Part, roots: Roots, observers: Sequence[Observer], threads: int | None, judge: Judge | None
) -> Exception | None:
    """What stood in the way of a part's results; its frames are emptied, as they hold the memory that ran out."""
    folders = [claim.folder for claim in part.claims]
    try:
        execute(folders, part.claims, roots, observers, threads, part.most_examples, judge)
    except (Stopped, KeyboardInterrupt) as stop:
        raise Interrupted from stop
    except Exception as error:
        _empty(error)
        return error
    return None


def _empty(error: BaseException | None) -> None:
    """Rid the frames of an error, and of those it came from, of their variables; its text stays."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def _after(part: _Part, error: Exception, observers: Sequence[Observer]) -> list[_Part]:
    """How a part goes on that was stopped by an error: without those that others have taken over, in halves, in
    smaller micro-batches; or not at all, and then the error is its run's."""
    mine = [claim for claim in part.claims if not _is_over(claim.folder) and _is_mine(claim)]
    if isinstance(error, Fenced):
        print(f"ablora: {error}; it goes on there", file=sys.stderr)
        return [replace(part, claims=tuple(mine))] if 0 < len(mine) < len(part.claims) else []
    if len(mine) > 1:
        middle = -(-len(mine) // 2)
        print(f"ablora: a pack of {len(mine)} runs: {failure_class(error)}: {error}; going on with halves of it, each "
              "from its checkpoints", file=sys.stderr)  # fmt: skip
        return [replace(part, claims=tuple(half)) for half in (mine[:middle], mine[middle:])]
    if mine and failure_class(error) == "out_of_memory" and (fewer := _fewer(mine[0], part)) is not None:
        print(f"ablora: run {mine[0].folder.id}: {error}; going on with {fewer} examples at a time", file=sys.stderr)
        return [replace(part, claims=tuple(mine), most_examples=fewer)]
    for claim in mine:
        fail(claim, error, observers)
    return []


def _is_mine(claim: Claim) -> bool:
    try:
        claim.fence()
    except Fenced:
        return False
    return True


def _fewer(claim: Claim, part: _Part) -> int | None:
    """Half the examples per pass; None where that would change the run's numbers, or there is one."""
    spec = claim.folder.read_spec()
    now = part.most_examples or spec.train.micro_batch or spec.train.batch_size
    return None if now == 1 or micro_batch_matters(spec) else now // 2


def fail(claim: Claim, error: Exception, observers: Sequence[Observer]) -> None:
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
