"""cluster=local: worker processes on this machine, started through submitit, that drain the packs between them.

submitit's LocalExecutor starts all its jobs at once, so a job here is a worker, not a pack; the claims see to it that
no run is executed twice. Workers outlive their parent: after a kill of the parent they finish, and the same command
finds what they did.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from submitit import Job as Worker
from submitit import LocalExecutor

from ablora.dispatch.base import Interrupted, Job
from ablora.dispatch.memory import place_gib
from ablora.dispatch.progress import StudyProgress
from ablora.dispatch.worker import work_in_worker
from ablora.spec import check
from ablora.store.claims import is_held
from ablora.store.run_folder import folder_of

YEAR_MIN = 365 * 24 * 60
"""submitit would otherwise send a time-out signal after two minutes."""
LOOK_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Several worker processes on this machine."""

    workers: int = 2
    threads: int | None = None
    """Threads of each worker; null: the machine's cores shared evenly."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", self.workers, "an integer of at least 1")
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "null, or an integer of at least 1")

    @property
    def needs_folder(self) -> bool:
        return True

    @property
    def places(self) -> int:
        return self.workers

    @property
    def prepares(self) -> bool:
        return False

    @property
    def memory_gib(self) -> float | None:
        return place_gib(self.workers)

    def at_once(self, packs: int) -> int:
        return min(self.workers, packs)

    def jobs(self, packs: int) -> str:
        count = self.at_once(packs)
        return f"{count} worker process{'es' * (count != 1)} on this machine"

    def require_usable(self, packs: int) -> None:
        """This machine is always there."""

    def follow(self, job: Job, folder: Path | None) -> bool:
        return False

    def drain(self, job: Job, folder: Path | None) -> None:
        assert folder is not None
        count = min(self.workers, len(job.packs))
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // count)
        workers: list[Worker] = []
        try:
            with _holding_interrupts():
                workers = _start(job, folder / "jobs", count, threads)
            _wait(workers, job)
        except KeyboardInterrupt as stop:
            print("ablora: stopping; runs are checkpointed at their next step", file=sys.stderr)
            for worker in filter(lambda w: not w.done(), workers):  # submitit's controllers forward it
                _terminate(worker)
            _wait(workers, job)
            raise Interrupted from stop


def _start(job: Job, folder: Path, count: int, threads: int) -> list[Worker]:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.save_tmp"):  # of a process that was killed; submitit would refuse to go on
        leftover.unlink()
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=YEAR_MIN)
    with _environment(job):
        # submitit hides the GPUs from local jobs that ask for none; a worker sees one of those that this process sees.
        visible, seen = os.environ.get("CUDA_VISIBLE_DEVICES"), job.claims()
        own = [own_gpu(worker, visible, _gpus()) for worker in range(count)]
        return [executor.submit(work_in_worker, job, seen, threads, gpu) for gpu in own]


def own_gpu(worker: int, visible: str | None, count: int) -> str | None:
    """What `CUDA_VISIBLE_DEVICES` is for one of several workers: they take the GPUs by turns.

    `visible` is what this process has been given (None: nothing, it sees all `count` of them).
    """
    gpus = [str(i) for i in range(count)] if visible is None else visible.split(",")
    return gpus[worker % len(gpus)] if len(gpus) > 1 else visible


def _gpus() -> int:
    import torch  # late: the command line starts without it

    return torch.cuda.device_count()


def _wait(workers: Sequence[Worker], job: Job) -> None:
    """Until every worker is gone; a worker's death is seen in its runs, which show as lost."""
    open_runs = {run: folder_of(job.roots, run) for run in job.runs}
    with StudyProgress(total=len(open_runs)) as progress:
        while True:
            alive = [worker for worker in workers if not worker.done()]
            for run, folder in list(open_runs.items()):
                if folder.result.exists() or folder.failure.exists():
                    progress.ended(open_runs.pop(run))
            if not alive:
                return
            progress.running(sum(map(is_held, open_runs.values())))
            time.sleep(LOOK_S)


def _terminate(worker: Worker) -> None:
    with suppress(ProcessLookupError):
        os.kill(int(worker.job_id), signal.SIGTERM)  # submitit's own cancel() sends SIGINT, to which it is deaf


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """What the workers inherit: the same folders, and no bytecode written into a source tree that others share."""
    wanted = {**job.environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _holding_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and never reaches a process started inside: it goes to the whole
    foreground group, and submitit's controller would answer it by killing its worker after one second, in the middle
    of a step. Blocked and not ignored, so that one that comes while workers start is not lost on this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
