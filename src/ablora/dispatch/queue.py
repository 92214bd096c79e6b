"""Where a study's runs are in SLURM: the records on disk, and one answer of squeue and sacct for everybody.

The answer is kept in studies/<name>/queue.json and asked for again when it is older than the submission's `poll_s`
(30 s), however many processes watch and however many tasks there are. The order is what makes it sound: records are
read first, SLURM is asked second, run folders are looked at third. A task that was sent before the question and is not
in the answer has ended; one that was sent after it waits.
"""

import getpass
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablora.dispatch import scheduler, submissions
from ablora.dispatch.scheduler import NoAnswer, Task
from ablora.dispatch.submissions import Submission
from ablora.store import atomic
from ablora.store.claims import alive_here, is_held, is_here, latest, owner_of
from ablora.store.roots import Roots
from ablora.store.run_folder import FailureClass, RunFolder, folder_of

CLASSES: dict[str, FailureClass] = {
    "TIMEOUT": "timeout", "DEADLINE": "timeout", "NODE_FAIL": "node_failure", "BOOT_FAIL": "node_failure",
    "PREEMPTED": "preempted", "OUT_OF_MEMORY": "out_of_memory", "CANCELLED": "cancelled", "REVOKED": "cancelled",
    "REQUEUED": "cancelled",
}  # fmt: skip
UNSEEN = "UNSEEN"
"""The end of a task of which SLURM has no row: cancelled while it waited, or there is no accounting."""

FORGOTTEN = "FORGOTTEN"
"""The same, of a task that slurmctld had taken just before it was started again."""
WRITES_S = 120
"""Within which slurmctld has written down what it took: seconds; the rest is for clocks that do not agree."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run's newest task."""

    task: str
    """Its name in SLURM; empty for an array whose number nobody wrote down yet."""
    live: bool
    """It waits, runs or is about to end, or that cannot be told: the run must not be sent again."""
    detail: str
    """While it lives what SLURM says it waits for; afterwards how it ended."""
    ended: FailureClass | None = None
    """How it ended, where that is a failure with a name of its own."""
    unprepared: bool = False
    """It never started, because the job that was to fill the caches did not end well."""
    alone: bool = True
    """Whether its task had no other run."""

    @property
    def is_final(self) -> bool:
        """Whether it ended as somebody wanted, or as it would again: it is tried again only when asked for. Memory that
        several runs were out of together may be enough for fewer."""
        return self.ended == "cancelled" or (self.ended == "out_of_memory" and self.alone)


@dataclass(frozen=True, slots=True)
class Answer:
    """What SLURM said, and of which submissions it can be taken to speak."""

    asked_s: float = 0.0
    cluster: str | None = None
    judged: tuple[str, ...] = ()
    """Submissions that were on disk before it was asked."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    ended: Mapping[str, str] = field(default_factory=dict)
    """How tasks ended that are gone from the queue; never asked for twice."""
    trouble: str = ""
    """Why SLURM did not answer; everything is as it was then."""


class Queue:
    """A study's tasks at one moment; `look` again for a later one."""

    def __init__(self, roots: Roots, study: Path):
        self.roots, self.study = roots, study
        self._forced = False
        self.look()

    def look(self, now: bool = False) -> "Queue":
        """Read the records again, and ask SLURM again if the last answer is too old (with `now` in any case)."""
        records = submissions.read(self.study)
        self.records = [record for record in records if record.phase != "abandoned"]
        self.given_up = {run: record.why for record in records if record.why for runs in record.tasks for run in runs}
        self.newest = {
            run: (record, i) for record in self.records for i, runs in enumerate(record.tasks) for run in runs
        }
        self.numbered = {(record.cluster, record.job): record.name for record in self.records}
        self.answer = self._kept()
        waiting = self._unfinished()
        poll_s = min((self.newest[run][0].poll_s for run in waiting), default=0.0)
        if waiting and (now or not 0 <= time.time() - self.answer.asked_s < poll_s):
            self.answer = self._asked(waiting)
            self._keep()
        return self

    @property
    def trouble(self) -> str:
        return self.answer.trouble

    def place(self, run: str) -> Place | None:
        """Where SLURM has a run; None for one that was never sent there, or whose end is settled."""
        if run not in self.newest:
            why = self.given_up.get(run)
            return None if why is None else Place("", False, why, unprepared=True)
        if run in self.newest[run][0].settled:
            return None
        record, index = self.newest[run]
        task = record.task(index)
        if why := self.unprepared(record):
            return Place(task or "", False, why, unprepared=True)
        if task is None or record.name not in self.answer.judged:
            return Place(task or "", True, "just sent")
        if self.numbered[record.cluster, record.job] != record.name:
            return Place(task, False, f"task {task} was forgotten by SLURM, and its number given to another")
        if record.cluster != self.answer.cluster:
            return Place(task, True, f"on the cluster {record.cluster}, which cannot be asked from here")
        if task in self.answer.tasks:
            return Place(task, True, _waits_for(self.answer.tasks[task]))
        end = self.answer.ended.get(task)
        if end is None:
            return Place(task, True, self.trouble or "about to end")
        if end == FORGOTTEN:
            return Place(task, False, f"task {task} was forgotten when slurmctld was started again")
        if end == UNSEEN:
            began = self._was_begun_by(run, task)
            return Place(task, False, f"task {task} is gone", None if began else "cancelled")
        return Place(task, False, f"task {task} {end}", CLASSES.get(end), alone=len(record.tasks[index]) == 1)

    def unprepared(self, record: Submission) -> str:
        """Why an array will never start: how the preparation ended that it waits for. Empty where it may yet."""
        for job, end in self._ends_of(record.after):
            if end not in (None, "COMPLETED"):
                word = "is gone" if end == UNSEEN else end
                return f"its preparation, job {job}, {word} (jobs/{job}_0_log.err)"
        return ""

    def never(self) -> dict[str, str]:
        """The arrays that will never start, by name, each with why."""
        return {record.name: why for record in self.records if (why := self.unprepared(record))}

    def _ends_of(self, names: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
        """Preparations that are neither through nor in the queue, with how they ended, where that is known."""
        for record in self.records:
            if record.name in names and not submissions.is_prepared(self.study, record.name):
                here = record.name in self.answer.judged and record.cluster == self.answer.cluster
                if here and record.job not in self.answer.tasks:
                    yield record.job, self.answer.ended.get(str(record.job))

    def holds(self, folder: RunFolder) -> bool:
        """Whether a living process runs the run now."""
        return is_held(folder, self.alive)

    def alive(self, owner: dict[str, Any]) -> bool:
        """Whether a claim's owner lives: the host is asked where that is this one, otherwise SLURM. Who cannot be asked
        counts as alive; the owner in a task that was requeued since is dead."""
        task = owner.get("slurm")
        if is_here(owner) or task is None:
            return alive_here(owner)
        if owner.get("cluster") not in (None, self.answer.cluster):
            return True
        found = self.answer.tasks.get(task)
        if found is None:
            return not (task in self.answer.ended or self._is_gone(task))
        return found.state != "PENDING" and found.restart <= owner["restart"]

    def _is_gone(self, task: str) -> bool:
        """Whether a task of which the answer does not speak has ended: a question asked now, after the claim was read,
        tells; once per process, as it is about another study's task or one that has only just begun."""
        if not self._forced:
            self._forced = True
            self.answer = self._asked(self._unfinished())
            self._keep()
            return not self.trouble and task not in self.answer.tasks
        return False

    def _unfinished(self) -> list[str]:
        """Sent runs that are not over: with none, SLURM need not be asked at all."""
        return [run for run, (record, _) in self.newest.items()
                if run not in record.settled and not _is_over(folder_of(self.roots, run))]  # fmt: skip

    def _asked(self, waiting: Sequence[str]) -> Answer:
        """A new answer; where SLURM gives none, the old one with the reason."""
        before = self.answer
        try:
            cluster = before.cluster or scheduler.configuration().get("ClusterName")
            users = {record.user for record, _ in map(self.newest.__getitem__, waiting)} | {getpass.getuser()}
            tasks = scheduler.queued(sorted(users))
        except NoAnswer as error:
            return Answer(time.time(), before.cluster, before.judged, before.tasks, before.ended, str(error))
        judged = tuple(record.name for record in self.records)
        gone = {task: record for record, i in map(self.newest.__getitem__, waiting)
                if (task := record.task(i)) is not None and record.cluster == cluster
                and task not in tasks and task not in before.ended}  # fmt: skip
        gone |= self._preparations_gone(waiting, cluster, {*tasks, *before.ended})
        ended = {**{task: end for task, end in before.ended.items() if task not in tasks}, **_ends(gone, tasks)}
        return Answer(time.time(), cluster, judged, tasks, ended)

    def _preparations_gone(self, waiting: Sequence[str], cluster: str | None, known: set[str]) -> dict[str, Submission]:
        names = {name for run in waiting for name in self.newest[run][0].after}
        return {str(record.job): record for record in self.records
                if record.name in names and record.job not in known and record.cluster == cluster}  # fmt: skip

    def _was_begun_by(self, run: str, task: str) -> bool:
        folder = folder_of(self.roots, run)
        generation = latest(folder)
        return generation >= 0 and owner_of(folder, generation).get("slurm") == task

    def _kept(self) -> Answer:
        path = self.study / "queue.json"
        if not path.exists():
            return Answer()
        try:
            found = atomic.read_json(path)
            tasks = {known: Task(*row) for known, row in found.pop("tasks").items()}
            return Answer(tasks=tasks, judged=tuple(found.pop("judged")), **found)
        except (atomic.Corrupted, KeyError, TypeError):
            return Answer()  # a view of SLURM: asked again

    def _keep(self) -> None:
        try:
            atomic.write_json(self.study / "queue.json", asdict(self.answer) | {"tasks": dict(self.answer.tasks)})
        except OSError:
            return  # another user's study, or a full disk: the answer serves this process


def queue_of(roots: Roots, study: Path) -> Queue | None:
    """The queue of a study of which something was ever sent to SLURM."""
    return Queue(roots, study) if submissions.folder_of(study).is_dir() else None


def _ends(gone: Mapping[str, Submission], queued: Iterable[str]) -> dict[str, str]:
    """How tasks ended, by the accounting and by what slurmctld remembers. One that sacct still calls running is left
    out, and counts as about to end; one that it calls requeued and that is gone was cancelled before its next life:
    seen of a task on a lost node (SLURM 22.05)."""
    if not gone:
        return {}
    jobs = sorted({str(record.job) for record in gone.values()})
    try:
        said = scheduler.ended(jobs)
    except NoAnswer:  # no accounting, or its database is down
        said = {}
    try:
        known = scheduler.remembered(jobs)
    except NoAnswer:  # none of them is known any more
        known = {}
    final = scheduler.FINAL | {"REQUEUED"}
    out = {
        task: _newer(end, known.get(task, "")) for task in gone if (end := said.get(task, "")).split(" ")[0] in final
    }
    unseen = {task: record for task, record in gone.items() if task not in said and _is_mine(record)}
    return out | _unseen(unseen, known, {task.partition("_")[0] for task in (*said, *known, *queued)})


def _newer(said: str, known: str) -> str:
    """Of the accounting's word and slurmctld's the one for a task's last life: a row may be that of the life before,
    such as NODE_FAIL of a requeued task that was cancelled while it waited; seen for three seconds. The accounting
    alone tells exit codes, and that a step was out of memory."""
    same = said.startswith(known) or (known, said) == ("FAILED", "OUT_OF_MEMORY")
    return said if same or known not in scheduler.FINAL else known


def _unseen(gone: Mapping[str, Submission], known: Mapping[str, str], arrays: set[str]) -> dict[str, str]:
    """How tasks ended of which the accounting has no row. It may not have heard yet: seen six seconds after they had
    failed, when slurmctld had just been started again. Or slurmctld itself was killed before it had written down that
    it took them: then it has forgotten the whole array, and not one task that was cancelled while it waited."""
    if not gone:
        return {}
    start = scheduler.start()
    lost = {task for task, record in gone.items() if record.job not in arrays and _is_forgotten(record, start)}
    heard = {task: known[task] for task in gone if known.get(task) in scheduler.FINAL}
    return dict.fromkeys(gone, UNSEEN) | dict.fromkeys(lost, FORGOTTEN) | heard


def _is_forgotten(record: Submission, start: scheduler.Start | None) -> bool:
    """Whether slurmctld was started again before it had written down an array that is not known to anybody. The next
    number tells it, whatever the clocks say, until it has been given again."""
    if start is None or record.job is None:
        return False
    return int(record.job) >= start.next_job or abs(start.time_s - record.made_s) < WRITES_S


def _is_mine(record: Submission) -> bool:
    """Another user's tasks may be hidden from me; mine are not."""
    return record.user == getpass.getuser()


def _waits_for(task: Task) -> str:
    again = f"requeued {task.restart} times" if task.restart else ""
    word = task.reason if task.state == "PENDING" else ""
    return ", ".join(filter(None, (word, again)))


def _is_over(folder: RunFolder) -> bool:
    return folder.result.exists() or folder.failure.exists()
