"""cluster=slurm: arrays of tasks, sent through submitit in two phases, and watched or left alone.

Any process may die at any moment, the one that sends included: the record of an array is written before the array
(`dispatch.submissions`), the array is sent held, and it is released when its number is on disk.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ablora.dispatch import preparation, scheduler, slurm_script, slurm_site, submissions
from ablora.dispatch.base import Interrupted, Job
from ablora.dispatch.frozen import freeze
from ablora.dispatch.preparation import prepare_in_task
from ablora.dispatch.progress import StudyProgress
from ablora.dispatch.queue import Queue
from ablora.dispatch.submissions import Submission
from ablora.dispatch.task import environment, work_in_task
from ablora.spec import BadInput, check
from ablora.store.run_folder import folder_of

LOOK_S = 1.0


class _Place(NamedTuple):
    """What all arrays of one command have in common."""

    folder: Path
    """The study's."""
    code: Path
    cluster: str
    most: int
    """Tasks of an array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slurm:
    """How a task is asked for, and what is done with it."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    time: int | str = 60
    """Minutes, or as SLURM writes it: "D-HH:MM:SS"."""
    memory: str | None = None
    """Of a task, such as 16G; null: the site's default; "0": all of a node."""
    gpus: int | str = 1
    """Per task; a type goes in front: a100:1."""
    processes: int = 1
    """Of a task, which share its node, each with a GPU and packs of its own: for sites that give whole nodes."""
    cpus: int = 4
    """Of a process."""
    threads: int | None = None
    """Of a run's matrix products; null: as many as cpus."""
    setup: tuple[str, ...] = ()
    """Lines of shell before Python starts, such as `module load cuda`."""
    container: str | None = None
    """In front of Python, such as `apptainer exec --nv image.sif`."""
    srun_options: tuple[str, ...] = ()
    """Of the srun that starts Python, by their long names; pyxis has its container there: container-image=..."""
    python: str | None = None
    """The interpreter on a node; null: this one's path."""
    stage: str | None = None
    """A folder on a node's own disk, to which the base is copied once for all processes there: $TMPDIR."""
    signal_lead_s: int = 120
    """How long before the end of its time a task is told to write its checkpoint: a step and an evaluation must fit."""
    requeue: bool = True
    """Whether a task may start again after the end of its time, preemption or the loss of its node."""
    array_parallelism: int | None = None
    """The most tasks of an array that run at once; null: no limit of ours."""
    packs_per_task: int = 1
    """For each of its processes."""
    options: tuple[str, ...] = ()
    """Other options of sbatch, by their long names: mail-type=END."""
    prepare: bool = True
    """Whether a job for each base fills the caches first, where they lack what its runs need."""
    wait: bool = True
    """Watch until the runs are through; false: send, and give the terminal back."""
    poll_s: int = 30
    """SLURM is asked once in so many seconds, whatever the number of tasks."""

    def __post_init__(self) -> None:
        for name in ("cpus", "packs_per_task", "poll_s", "processes", "signal_lead_s"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        for name in ("threads", "array_parallelism"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "null, or an integer of at least 1")
        check(bool(re.fullmatch(r"(\w[\w.-]*:)?\d+", str(self.gpus))), "gpus", self.gpus, "a number, or TYPE:NUMBER")
        one_each = f"1, or one for each GPU (cluster.gpus={self.gpus}); any number where cluster.gpus=0"
        check(self.processes in (1, self.gpu_count) or not self.gpu_count, "processes", self.processes, one_each)
        there = self.stage is None or self.stage.startswith(("/", "$", "~"))
        check(there, "stage", self.stage, "null, or a folder on a node: an absolute path, or in a variable: $TMPDIR")
        memory = self.memory is None or bool(re.fullmatch(r"\d+[KMGT]?B?", self.memory))
        check(memory, "memory", self.memory, "a number of megabytes, or one with K, M, G or T behind it, such as 16G")
        try:
            given = scheduler.minutes(self.time)
        except ValueError:
            given = 0
        check(given is None or given >= 1, "time", self.time, "minutes of at least 1, H:MM:SS or D-HH:MM:SS")

    @property
    def needs_folder(self) -> bool:
        return True

    @property
    def places(self) -> int:
        return self.processes

    @property
    def prepares(self) -> bool:
        return self.prepare

    @property
    def memory_gib(self) -> float | None:
        if self.memory is None or self.gpu_count:  # with a GPU it is the device's that counts, which is not known here
            return None
        return scheduler.gib(self.memory) / self.processes or None  # 0 is all of a node, whatever that has

    @property
    def gpu_count(self) -> int:
        return int(str(self.gpus).rpartition(":")[2])

    @property
    def _short_s(self) -> float | None:
        """Half of what a task has until it is told of the end of its time, which SLURM does up to a minute early: told
        before that, it was preempted. By the task's own watch, as the clocks of nodes need not agree."""
        given = scheduler.minutes(self.sbatch_options()["time"])
        return None if given is None else max(60.0 * given - self.signal_lead_s - 60.0, 0.0) / 2

    def tasks(self, packs: int) -> int:
        """How many tasks so many packs are."""
        return -(-packs // (self.packs_per_task * self.processes))

    def at_once(self, packs: int) -> int:
        return min(packs, self.processes * min(self.tasks(packs), self.array_parallelism or self.tasks(packs)))

    def jobs(self, packs: int) -> str:
        """Asks SLURM for the length of its arrays, where there is one to be asked."""
        tasks = self.tasks(packs)
        said = f"{tasks} task{'s' * (tasks != 1)}" + f", each of {self.processes} processes," * (self.processes > 1)
        try:
            arrays = -(-tasks // slurm_site.longest_array())
        except scheduler.NoAnswer:
            return f"{said} of SLURM, in one array unless the site's are shorter (no SLURM answers here)"
        return f"{said} of SLURM in {arrays} array{'s' * (arrays != 1)}"

    def sbatch_options(self) -> dict[str, str]:
        """What a task asks for, as long options of sbatch."""
        wanted = {
            "partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint,
            "reservation": self.reservation, "time": self.time, "mem": self.memory, "cpus-per-task": self.cpus,
            "ntasks-per-node": self.processes, "gpus-per-node": self.gpus if self.gpu_count else None,
            "signal": f"USR2@{self.signal_lead_s}",
            "requeue" if self.requeue else "no-requeue": True,
        }  # fmt: skip
        flags = {name: "" if value is True else str(value) for name, value in wanted.items() if value is not None}
        others = (option.lstrip("-").partition("=") for option in self.options)
        return flags | {name: value for name, _, value in others}

    def _options(self, before: Submission | None) -> dict[str, str]:
        """The same of an array that waits for a preparation."""
        wanted = self.sbatch_options()
        if before is None:
            return wanted
        others = [wanted["dependency"]] if "dependency" in wanted else []
        return wanted | {"dependency": ",".join([*others, f"afterok:{before.job}"])}

    def require_usable(self, packs: int) -> None:
        """Refuse, before anything is written, what the site would refuse or leave waiting for ever."""
        slurm_site.require(self, self.tasks(packs))

    def drain(self, job: Job, folder: Path | None) -> None:
        """Send the runs, and unless `wait` is false watch them until none of them waits or runs."""
        assert folder is not None
        try:
            sent = self._send(job, folder)
        except scheduler.NoAnswer as error:
            raise BadInput("cluster", "slurm", f"a SLURM that answers ({error}); the same command goes on") from error
        if sent:
            print(f"ablora: sent {sum(map(len, sent.values()))} runs to SLURM: {', '.join(sent)}", file=sys.stderr)
        self.follow(job, folder)

    def follow(self, job: Job, folder: Path | None) -> bool:
        """Watch runs that SLURM has until none of them waits or runs; False if they are not watched."""
        if not self.wait or folder is None:
            return False
        queue = Queue(job.roots, folder)
        open_ = {run: folder_of(job.roots, run) for run in job.runs}
        try:
            with StudyProgress(total=len(open_)) as progress:
                while True:
                    _say_trouble(queue)
                    places = {run: place for run in open_ if (place := queue.place(run)) is not None and place.live}
                    for run, run_folder in list(open_.items()):
                        if run_folder.result.exists() or run_folder.failure.exists():
                            progress.ended(open_.pop(run))
                        elif run not in places:
                            del open_[run]
                    if not open_:
                        return True
                    progress.running(sum(map(queue.holds, open_.values())))
                    time.sleep(LOOK_S)
                    queue.look()
        except KeyboardInterrupt as stop:
            print(f"ablora: the jobs go on; ablora watch {job.study} shows them, the same command watches again, "
                  f"ablora cancel {job.study} ends them", file=sys.stderr)  # fmt: skip
            raise Interrupted from stop

    def _send(self, job: Job, folder: Path) -> dict[str, list[str]]:
        """One array for all packs (more where the site's arrays are shorter); the runs by the array's number."""
        most = slurm_site.longest_array()
        with submissions.lock(folder):
            submissions.mend(folder)
            queue = Queue(job.roots, folder)
            packs = [pack for pack in job.packs if not any(_is_taken(queue, run) for run in pack)]
            if not packs:
                return {}
            place = _Place(folder, freeze(folder / "code"), scheduler.configuration()["ClusterName"], most)
            parts = preparation.groups(job, packs) if self.prepare else [preparation.Group("", tuple(packs))]
            return {number: runs for part in parts for number, runs in self._send_group(job, part, place).items()}

    def _send_group(self, job: Job, part: preparation.Group, place: _Place) -> dict[str, list[str]]:
        """The arrays of packs that need the same preparation, which is released when they are there to wait for it."""
        before = preparation.waiting_for(place.folder, part)
        if before is None and part.keys:
            before = self._send_preparation(job, part, place)
        per, packs = self.packs_per_task * self.processes, part.packs
        tasks = [tuple(packs[i : i + per]) for i in range(0, len(packs), per)]
        arrays = [tasks[i : i + place.most] for i in range(0, len(tasks), place.most)]
        sent = dict(self._send_array(job, array, place, before) for array in arrays)
        if before is not None and before.phase == "held":
            submissions.release(place.folder, before)
        return sent

    def _send_preparation(self, job: Job, part: preparation.Group, place: _Place) -> Submission:
        """A held job that makes what the packs lack."""
        record = submissions.begin(place.folder, [()], place.cluster, place.code, self.poll_s, prepares=part.keys)
        call = replace(job, packs=(part.runs,)), submissions.prepared(place.folder, record.name)
        number = self._submit(record.name, prepare_in_task, [call], place, job)
        print(f"ablora: job {number} fills the caches first ({len(part.keys)} needs)", file=sys.stderr)
        return submissions.write(place.folder, replace(record, job=number, phase="held"))

    def _send_array(
        self, job: Job, tasks: Sequence[tuple[tuple[str, ...], ...]], place: _Place, before: Submission | None
    ) -> tuple[str, list[str]]:
        jobs = [replace(job, packs=packs) for packs in tasks]
        after = () if before is None else (before.name,)
        runs = [one.runs for one in jobs]
        record = submissions.begin(place.folder, runs, place.cluster, place.code, self.poll_s, after=after)
        calls = [(one, one.claims(), self.threads or self.cpus, self._short_s) for one in jobs]
        number = self._submit(record.name, work_in_task, calls, place, job, before)
        record = submissions.write(place.folder, replace(record, job=number, phase="held"))
        submissions.release(place.folder, record)
        return number, [run for own in runs for run in own]

    def _submit(
        self, name: str, does: Callable[..., None], calls: Sequence[tuple[Any, ...]], place: _Place, job: Job,
        before: Submission | None = None,
    ) -> str:  # fmt: skip
        """The number of a held array, one task for each call."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        folder, variables = place.folder / "jobs", environment(job, str(place.code), self.stage)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.save_tmp"):  # of a process that was killed; submitit would refuse to go on
            leftover.unlink()
        executor = SlurmExecutor(folder, python=slurm_script.python_of(self))
        processes = 1 if does is prepare_in_task else self.processes
        options = self._options(before)
        executor.update_parameters(
            **slurm_script.parameters(self, name, len(calls), variables, options, folder, processes)
        )
        try:
            with _outside_of_a_job():
                with executor.batch():
                    sent = [executor.submit(does, *arguments) for arguments in calls]
                return sent[0].job_id.partition("_")[0]
        except FailedJobError as error:
            said = " ".join(str(error).split())
            legal = f"what sbatch takes; it says: {said}; the same command goes on"
            raise BadInput("cluster", "slurm", legal) from error


def _is_taken(queue: Queue, run: str) -> bool:
    """Whether another controller sent the run, or somebody ended it, since this one looked."""
    place = queue.place(run)
    folder = folder_of(queue.roots, run)
    return (place is not None and place.live) or folder.result.exists() or folder.failure.exists()


def _say_trouble(queue: Queue, said: list[str] = []) -> None:  # noqa: B006 -- once per process and reason
    if queue.trouble and queue.trouble not in said:
        said.append(queue.trouble)
        print(f"ablora: SLURM does not answer ({queue.trouble}); waiting for it", file=sys.stderr)


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """An allocation's own variables would steer what is sent from inside it."""
    hidden = {name: os.environ.pop(name) for name in os.environ.keys() - scheduler.without_a_job().keys()}
    try:
        yield
    finally:
        os.environ.update(hidden)
