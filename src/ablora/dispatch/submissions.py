"""What was sent to SLURM, on disk: one record per array, written before the array exists.

studies/<name>/submissions/<name>.json
  {"schema", "name", "made_s", "user", "cluster", "code", "tasks": [[run, ...], ...], "job", "phase", "settled": [run],
   "prepares": [need], "after": [name], "why"}
studies/<name>/submissions/<name>.prepared   a preparation (a record of one task without runs) has ended well
`name` is the array's name in SLURM, by which it is found if its sender died before it could write the number down.
phase: writing -> held (the number is written down) -> released; or abandoned. Only a held array is released, so one
that nobody knows never runs, and of two records for a run only one ever had a task that ran.
"""

import getpass
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock

from ablora.dispatch import scheduler
from ablora.store import atomic

SCHEMA = 1
PREFIX = "abl-"


@dataclass(frozen=True, slots=True)
class Submission:
    """One array of SLURM."""

    name: str
    made_s: float
    user: str
    cluster: str
    code: str
    """The folder that its tasks import."""
    poll_s: float
    tasks: tuple[tuple[str, ...], ...]
    """The runs of each task."""
    job: str | None = None
    phase: Literal["writing", "held", "released", "abandoned"] = "writing"
    settled: tuple[str, ...] = ()
    """Runs whose end by SLURM is written down in their folders; what SLURM says of them counts no more."""
    prepares: tuple[str, ...] = ()
    """Of a preparation: what it makes in the caches."""
    after: tuple[str, ...] = ()
    """The preparations that have to end well before its tasks may start."""
    why: str = ""
    """Why an array was given up that had been sent."""

    def task(self, index: int) -> str | None:
        """A task's name as squeue and sacct give it; an array of one is a plain job."""
        return self.job if self.job is None or len(self.tasks) == 1 else f"{self.job}_{index}"


def folder_of(study: Path) -> Path:
    return study / "submissions"


def lock(study: Path) -> FileLock:
    """Held by whoever sends, mends or settles; seconds."""
    study.mkdir(parents=True, exist_ok=True)
    return FileLock(study / ".submissions.lock")


def begin(
    study: Path, tasks: Sequence[Sequence[str]], cluster: str, code: Path, poll_s: float, **more: tuple[str, ...]
) -> Submission:
    """The record of an array that will be sent, younger than every other, whatever the clock of this machine says: of a
    run's records the newest counts, and the sender before may have had a clock that is ahead. Under the lock."""
    name = f"{PREFIX}{uuid.uuid4().hex[:16]}"
    made_s = max(time.time(), *(math.nextafter(record.made_s, math.inf) for record in read(study)), 0.0)
    made = Submission(name, made_s, getpass.getuser(), cluster, str(code), poll_s, tuple(map(tuple, tasks)))
    return write(study, replace(made, **more))


def prepared(study: Path, name: str) -> Path:
    """The file that says that a preparation has ended well."""
    return folder_of(study) / f"{name}.prepared"


def is_prepared(study: Path, name: str) -> bool:
    return prepared(study, name).exists()


def write(study: Path, record: Submission) -> Submission:
    atomic.write_json(folder_of(study) / f"{record.name}.json", {"schema": SCHEMA, **asdict(record)})
    return record


def read(study: Path) -> list[Submission]:
    """Every record, the oldest first."""
    return sorted(_records(study), key=lambda record: (record.made_s, record.name))


def _records(study: Path) -> Iterator[Submission]:
    for path in folder_of(study).glob(f"{PREFIX}*.json"):
        found = atomic.read_json(path)
        try:
            tasks = tuple(tuple(runs) for runs in found["tasks"])
            rest = {key: found[key] for key in ("name", "made_s", "user", "cluster", "code", "poll_s", "job", "phase")}
            more = {key: tuple(found.get(key, ())) for key in ("prepares", "after")}  # younger than some records
            yield Submission(tasks=tasks, settled=tuple(found["settled"]), why=found.get("why", ""), **more, **rest)
        except (KeyError, TypeError) as error:
            legal = "a submission; see squeue for its name, scancel it, and move the file away"
            raise atomic.Corrupted(str(path), str(error), legal) from error


def release(study: Path, record: Submission) -> Submission:
    """Let a held array run."""
    scheduler.ask("scontrol", "release", str(record.job))
    return write(study, replace(record, phase="released"))


def give_up(study: Path, whys: Mapping[str, str]) -> None:
    """Cancel arrays, by name, that will never start; their runs are sent again by the next command. Under the lock."""
    for record in read(study):
        if record.name in whys and record.phase != "abandoned":
            scheduler.ask("scancel", str(record.job))
            write(study, replace(record, phase="abandoned", why=whys[record.name]))


def mend(study: Path) -> None:
    """Bring records that a dead sender left to one end or the other; under the lock, so that nobody is at them.

    Held: released. Writing: cancelled where SLURM has the name, and abandoned. One that SLURM takes only after that
    (its `sbatch` outlived the sender) stays held, as nobody releases it, and is cancelled when there is something to
    mend again. Raises `NoAnswer`.
    """
    records = read(study)
    unfinished = [record for record in records if record.phase in ("writing", "held")]
    if not unfinished:
        return
    queue = scheduler.queued({record.user for record in unfinished})
    found = {task.name: known.partition("_")[0] for known, task in queue.items()}
    for record in records:
        if record.phase in ("writing", "abandoned") and record.name in found:
            scheduler.ask("scancel", found[record.name])
        if record.phase == "writing":
            write(study, replace(record, phase="abandoned"))
        if record.phase == "held":
            if record.name in found:
                release(study, record)
            else:  # released by one that died before it wrote so, and through already; or cancelled
                write(study, replace(record, phase="released"))
