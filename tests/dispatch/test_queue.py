"""What may be concluded from SLURM's answer, and what may not; no SLURM is needed."""

import getpass
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from ablora.dispatch import scheduler, submissions
from ablora.dispatch.queue import Queue
from ablora.dispatch.scheduler import NoAnswer, Task
from ablora.store import claims
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.settle import settle
from ablora.study.status import Standing, standing
from control_plane import claimed


class Site:
    """SLURM as a test says it is."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.ends: dict[str, str] | None = {}
        self.known: dict[str, str] | None = None
        self.started_s: float | None = None
        self.next_job = 8
        self.asked = 0
        self.down = False

    def queued(self, users):
        self.asked += 1
        if self.down:
            raise NoAnswer("squeue: Unable to contact slurm controller")
        return dict(self.tasks)

    def ended(self, jobs):
        if self.ends is None:
            raise NoAnswer("sacct: Slurm accounting storage is disabled")
        return dict(self.ends)

    def remembered(self, jobs):
        if self.known is None:
            raise NoAnswer("slurm_load_jobs error: Invalid job id specified")
        return dict(self.known)

    def configuration(self):
        boot = {} if self.started_s is None else {"BOOT_TIME": datetime.fromtimestamp(self.started_s).isoformat()}
        return {"ClusterName": "lab", "MaxArraySize": "8", "NEXT_JOB_ID": str(self.next_job), **boot}


@pytest.fixture
def site(monkeypatch) -> Site:
    made = Site()
    for name in ("queued", "ended", "remembered", "configuration"):
        monkeypatch.setattr(scheduler, name, getattr(made, name))
    return made


@pytest.fixture
def study(roots) -> Path:
    return roots.studies / "s"


def run(roots, name: str) -> RunFolder:
    folder = folder_of(roots, name)
    folder.path.mkdir(parents=True)
    return folder


def send(study: Path, *tasks: tuple[str, ...], cluster: str = "lab", poll_s: float = 30) -> submissions.Submission:
    record = submissions.begin(study, tasks, cluster, study / "code", poll_s)
    return submissions.write(study, replace(record, job="7", phase="released"))


RUNNING, PENDING = Task("RUNNING", "", 0, "abl-x"), Task("PENDING", "Priority", 0, "abl-x")


def test_queued_running_requeued_and_lost(roots, study, site):
    a, b, c, d = (run(roots, name) for name in "abcd")
    send(study, ("a",), ("b",), ("c",), ("d",), poll_s=1e-6)
    site.tasks = {"7_0": PENDING, "7_1": RUNNING, "7_2": replace_restart(PENDING, 1)}
    site.ends = {"7_3": "NODE_FAIL"}
    for folder, task in ((b, "7_1"), (c, "7_2"), (d, "7_3")):
        claimed(folder, task)
    queue = Queue(roots, study)
    found = [standing(folder, queue) for folder in (a, b, c, d)]
    assert [(s.state, s.detail) for s in found] == [
        ("queued", "Priority"),
        ("running", ""),
        ("queued", "Priority, requeued 1 times"),
        ("lost", "node_failure, task 7_3 NODE_FAIL"),
    ]
    assert standing(b).state == "running", "without SLURM another host counts as alive"


def replace_restart(task: Task, restart: int) -> Task:
    return task._replace(restart=restart)


def test_a_task_that_was_requeued_and_runs_again_is_not_its_earlier_life(roots, study, site):
    folder = run(roots, "a")
    send(study, ("a",))
    site.tasks = {"7": replace_restart(RUNNING, 1)}
    claimed(folder, "7", restart=0)
    queue = Queue(roots, study)
    assert standing(folder, queue).state == "queued", "its new life has not begun with the run"
    claimed(folder, "7", restart=1)
    assert standing(folder, queue).state == "running"


def test_a_submission_that_is_younger_than_the_answer_is_not_judged(roots, study, site):
    run(roots, "a"), run(roots, "b")
    send(study, ("a",))
    site.ends = {"7": "COMPLETED"}
    queue = Queue(roots, study)
    assert not queue.place("a").live  # type: ignore[union-attr]
    send(study, ("b",))
    assert queue.look().place("b").live  # type: ignore[union-attr]
    assert site.asked == 1


def test_a_task_that_was_through_without_its_run_is_named(roots, study, site):
    """What SLURM says of a job whose node could not execute it: exit code 0."""
    folder = run(roots, "a")
    send(study, ("a",))
    site.ends = {"7": "COMPLETED"}
    found = standing(folder, Queue(roots, study))
    assert (found.state, found.detail) == ("planned", "task 7 COMPLETED and had not begun with it")


def test_the_record_that_was_sent_last_counts_whatever_the_clocks_say(roots, study, site, monkeypatch):
    """Sent from a login node whose clock is ahead, cancelled, and sent again from another one."""
    folder = run(roots, "a")
    with monkeypatch.context() as ahead:
        ahead.setattr(submissions.time, "time", lambda now=submissions.time.time: now() + 600)
        send(study, ("a",), poll_s=1e-6)
    claimed(folder, "7")
    again = submissions.write(study, replace(send(study, ("a",), poll_s=1e-6), job="8"))
    site.tasks, site.ends = {"8": PENDING}, {"7": "CANCELLED"}
    queue = Queue(roots, study)
    assert submissions.read(study)[-1] == again
    assert standing(folder, queue).state == "queued"
    settle(queue)
    assert not folder.failure.exists()


def test_slurm_is_asked_once_in_its_time_and_not_at_all_when_all_is_over(roots, study, site):
    folders = [run(roots, name) for name in "ab"]
    send(study, ("a",), ("b",))
    site.tasks = {"7_0": RUNNING, "7_1": PENDING}
    for _ in range(5):
        Queue(roots, study).look()  # a process of its own each, as it were
    assert site.asked == 1
    Queue(roots, study).look(now=True)
    assert site.asked == 2
    for folder in folders:
        folder.result.write_text("{}")
    Queue(roots, study).look(now=True)
    assert site.asked == 2


def test_where_slurm_does_not_answer_nobody_is_dead(roots, study, site):
    folder = run(roots, "a")
    send(study, ("a",))
    site.down = True
    claimed(folder, "7")
    queue = Queue(roots, study)
    assert "Unable to contact" in queue.trouble
    assert standing(folder, queue).state == "running"
    assert claims.take(folder, queue.alive) is None


def test_another_cluster_and_another_user_are_not_judged(roots, study, site, monkeypatch):
    run(roots, "a"), run(roots, "b")
    send(study, ("a",), cluster="elsewhere")
    queue = Queue(roots, study)
    assert queue.place("a").live  # type: ignore[union-attr]
    assert queue.alive({"host": "n", "slurm": "7", "restart": 0, "cluster": "elsewhere"})
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    send(study, ("b",))
    monkeypatch.undo()
    for name in ("queued", "ended", "remembered", "configuration"):
        monkeypatch.setattr(scheduler, name, getattr(site, name))
    assert queue.look(now=True).place("b").live, "its tasks may be hidden from me"  # type: ignore[union-attr]


@pytest.mark.parametrize("accounting", [True, False])
def test_a_task_of_which_slurm_has_no_row_was_cancelled_while_it_waited(roots, study, site, accounting):
    waiting, begun = run(roots, "a"), run(roots, "b")
    send(study, ("a",), ("b",))
    site.ends = {} if accounting else None
    claimed(begun, "7_1")
    queue = Queue(roots, study)
    assert (standing(waiting, queue).state, standing(waiting, queue).detail) == ("failed", "cancelled")
    assert (standing(begun, queue).state, standing(begun, queue).detail) == ("lost", "task 7_1 is gone")


def test_a_requeued_task_that_is_gone_was_cancelled_while_it_waited(roots, study, site):
    """On a node that is lost: SLURM's row stays at REQUEUED, and the run counted as about to end for ever."""
    folder = run(roots, "a")
    send(study, ("a",), poll_s=1e-6)
    claimed(folder, "7")
    (folder.path / "claim.0.released").touch()
    site.tasks, site.ends = {"7": PENDING._replace(reason="BeginTime", restart=1)}, {"7": "REQUEUED"}
    assert standing(folder, Queue(roots, study)).state == "queued"
    site.tasks = {}
    queue = Queue(roots, study)
    settle(queue)
    assert (standing(folder, queue).state, standing(folder, queue).detail) == ("failed", "cancelled")


@pytest.mark.parametrize(
    ("row", "known", "end"),
    [
        ("NODE_FAIL", "CANCELLED", "CANCELLED"),
        ("REQUEUED", "CANCELLED", "CANCELLED"),
        ("FAILED 12:0", "FAILED", "FAILED 12:0"),
        ("OUT_OF_MEMORY", "FAILED", "OUT_OF_MEMORY"),
        ("NODE_FAIL", "PENDING", "NODE_FAIL"),
    ],
)
def test_the_row_of_an_earlier_life_does_not_count_where_slurmctld_knows_better(roots, study, site, row, known, end):
    """A task of a lost node that was cancelled before its next life: for three seconds its row was still NODE_FAIL."""
    run(roots, "a")
    send(study, ("a",), poll_s=1e-6)
    site.ends, site.known = {"7": row}, {"7": known}
    assert Queue(roots, study).answer.ended == {"7": end}


def test_a_task_of_which_the_accounting_has_not_heard_yet_is_not_taken_for_cancelled(roots, study, site):
    """It was killed before it began with its run; slurmctld knows of that at once."""
    folder = run(roots, "a")
    send(study, ("a",), poll_s=1e-6)
    site.known = {"7": "FAILED"}
    queue = Queue(roots, study)
    settle(queue)
    assert standing(folder, queue) == Standing("lost", "task 7 FAILED")
    assert not folder.failure.exists()


@pytest.mark.parametrize(
    ("after_s", "next_job", "state"),
    [(5, 8, "lost"), (-5, 8, "lost"), (3600, 8, "failed"), (-3600, 8, "failed"), (-3600, 7, "lost")],
)
def test_a_task_that_slurmctld_had_just_taken_when_it_was_killed_is_forgotten_and_not_cancelled(
    roots, study, site, after_s, next_job, state
):
    """It writes its state down seconds later. Started again long after or before, it has nothing to do with it; unless
    the sender's clock is off: its number is then to be given again."""
    folder = run(roots, "a")
    record = send(study, ("a",), poll_s=1e-6)
    site.started_s, site.next_job = record.made_s + after_s, next_job
    queue = Queue(roots, study)
    settle(queue)
    assert standing(folder, queue).state == state
    if state == "lost":
        assert standing(folder, queue).detail == "task 7 was forgotten when slurmctld was started again"


def test_a_task_that_was_cancelled_while_it_waited_is_not_forgotten_where_its_array_is_known(roots, study, site):
    folder, _ = run(roots, "a"), run(roots, "b")
    record = send(study, ("a",), ("b",))
    site.started_s = record.made_s + 5
    site.tasks = {"7_1": RUNNING}
    found = standing(folder, Queue(roots, study))
    assert (found.state, found.detail) == ("failed", "cancelled")


def test_a_number_that_slurm_gave_again_is_the_younger_arrays(roots, study, site):
    first, second = run(roots, "a"), run(roots, "b")
    send(study, ("a",))
    send(study, ("b",))
    site.tasks = {"7": RUNNING}
    claimed(second, "7")
    queue = Queue(roots, study)
    assert standing(second, queue).state == "running"
    lost = standing(first, queue)
    assert (lost.state, lost.detail) == ("lost", "task 7 was forgotten by SLURM, and its number given to another")


def test_what_ended_for_good_is_written_down_once_and_a_retry_is_not_undone(roots, study, site):
    folder = run(roots, "a")
    send(study, ("a",))
    site.ends = {"7": "CANCELLED"}
    claimed(folder, "7")
    settle(Queue(roots, study))
    assert folder.read_failure()["message"] == "SLURM: task 7 CANCELLED"
    assert not claims.is_held(folder, Queue(roots, study).alive)
    folder.failure.rename(folder.path / "failure.0.json")
    settle(queue := Queue(roots, study))
    assert not folder.failure.exists()
    assert standing(folder, queue).state == "planned"


def test_a_run_that_somebody_runs_is_not_given_a_failure(roots, study, site):
    folder = run(roots, "a")
    send(study, ("a",))
    site.ends = {"7": "CANCELLED"}
    assert claims.take(folder) is not None
    settle(Queue(roots, study))
    assert not folder.failure.exists()


def test_a_task_that_cannot_be_known_from_the_answer_is_asked_for_once(roots, study, site):
    run(roots, "a")
    send(study, ("a",))
    site.tasks = {"7": PENDING}
    queue = Queue(roots, study)
    foreign = {"host": "n", "slurm": "99_1", "restart": 0, "cluster": "lab"}
    assert not queue.alive(foreign), "asked after the claim was read, and not there"
    assert site.asked == 2
    assert queue.alive({**foreign, "slurm": "98_1"})
    assert site.asked == 2
