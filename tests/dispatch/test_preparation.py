"""Which runs wait for which preparation, and what its end means for them; no SLURM is needed."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ablora.config import ask
from ablora.dispatch import scheduler, submissions
from ablora.dispatch.base import Job
from ablora.dispatch.preparation import groups, prepare_in_task
from ablora.dispatch.queue import Queue
from ablora.dispatch.scheduler import NoAnswer, Task
from ablora.dispatch.slurm import Slurm
from ablora.dispatch.submissions import Submission
from ablora.store.run_folder import create, folder_of
from ablora.study.settle import settle
from ablora.study.status import standing
from ablora.track import TrackerConfig
from ablora.tree import build


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A task sets handlers for the rest of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


WAITS = Task("PENDING", "Dependency", 0, "abl-x")


@pytest.fixture
def study(roots) -> Path:
    return roots.studies / "s"


@pytest.fixture
def site(monkeypatch):
    """What squeue and sacct say: tasks, and the ends of those that are gone (None: no accounting)."""
    tasks: dict[str, Task] = {}
    ends: list[dict[str, str] | None] = [{}]
    asked: list[str] = []

    def ended(jobs):
        if ends[0] is None:
            raise NoAnswer("sacct: Slurm accounting storage is disabled")
        return ends[0]

    def ask_slurm(*command):
        asked.append(" ".join(command))
        return ""

    monkeypatch.setattr(scheduler, "queued", lambda users: dict(tasks))
    monkeypatch.setattr(scheduler, "ended", ended)
    monkeypatch.setattr(scheduler, "remembered", lambda jobs: {})
    monkeypatch.setattr(scheduler, "configuration", lambda: {"ClusterName": "lab"})
    monkeypatch.setattr(scheduler, "ask", ask_slurm)
    return tasks, ends, asked


def sent(study: Path) -> tuple[Submission, Submission]:
    """A preparation, job 6, and an array of two runs, job 7, that waits for it."""
    first = submissions.begin(study, [()], "lab", study / "code", 0.001, prepares=("need",))
    first = submissions.write(study, replace(first, job="6", phase="released"))
    array = submissions.begin(study, [("a",), ("b",)], "lab", study / "code", 0.001, after=(first.name,))
    return first, submissions.write(study, replace(array, job="7", phase="released"))


@pytest.mark.parametrize(
    ("end", "told", "state"),
    [
        ({"6": "FAILED 1:0"}, False, "planned"),
        ({"6": "TIMEOUT"}, False, "planned"),
        ({"6": "CANCELLED"}, False, "planned"),
        ({"6": "COMPLETED"}, False, "queued"),
        ({"6": "RUNNING"}, False, "queued"),
        ({}, False, "planned"),
        (None, False, "planned"),
        (None, True, "queued"),
        ({"6": "FAILED 1:0"}, True, "queued"),
    ],
)
def test_what_the_end_of_a_preparation_means(roots, study, site, end, told, state):
    """`told`: it has said itself that it ended well, which counts."""
    tasks, ends, _ = site
    first, _ = sent(study)
    tasks |= {"7_0": WAITS, "7_1": WAITS}
    ends[0] = end
    if told:
        submissions.prepared(study, first.name).touch()
    found = standing(folder_of(roots, "a"), Queue(roots, study))
    assert found.state == state
    assert ("its preparation, job 6, " in found.detail) == (state == "planned")


def test_a_preparation_that_waits_or_runs_holds_its_runs(roots, study, site):
    tasks, _, _ = site
    sent(study)
    tasks |= {"6": Task("RUNNING", "", 0, "abl-y"), "7_0": WAITS, "7_1": WAITS}
    found = standing(folder_of(roots, "a"), Queue(roots, study))
    assert (found.state, found.detail) == ("queued", "Dependency")


def test_an_array_that_will_never_start_is_given_up_once_and_still_explained(roots, study, site):
    """Also where SLURM has cancelled it by itself: that is nobody's cancelling of a run."""
    _, ends, asked = site
    first, array = sent(study)
    ends[0] = {"6": "FAILED 1:0", "7_0": "CANCELLED", "7_1": "CANCELLED"}
    settle(Queue(roots, study))
    assert asked == ["scancel 7"]
    kept = {record.name: record for record in submissions.read(study)}
    assert (kept[array.name].phase, kept[first.name].phase) == ("abandoned", "released")
    queue = Queue(roots, study)
    found = standing(folder_of(roots, "b"), queue)
    assert (found.state, found.detail) == ("planned", "its preparation, job 6, FAILED 1:0 (jobs/6_0_log.err)")
    assert not folder_of(roots, "b").failure.exists()
    settle(queue)
    assert asked == ["scancel 7"]
    again = submissions.begin(study, [("a",), ("b",)], "lab", study / "code", 0.001)
    submissions.write(study, replace(again, job="8", phase="released"))
    site[0]["8_1"] = Task("RUNNING", "", 0, "abl-x")
    assert standing(folder_of(roots, "b"), Queue(roots, study)).state == "queued"


def test_records_from_before_there_were_preparations_are_read(study):
    _, array = sent(study)
    path = submissions.folder_of(study) / f"{array.name}.json"
    record = json.loads(path.read_text())
    for key in ("prepares", "after", "why"):
        del record[key]
    path.write_text(json.dumps(record))
    assert replace(array, after=()) in submissions.read(study)


def test_an_array_keeps_what_else_it_was_to_wait_for(study):
    first, _ = sent(study)
    wanted = Slurm(options=("dependency=singleton",))
    assert wanted._options(first)["dependency"] == "singleton,afterok:6"
    assert wanted._options(None)["dependency"] == "singleton"
    assert Slurm()._options(first)["dependency"] == "afterok:6"


SHORT = ["train=quick", "eval.tasks.generation=null", "eval.tasks.forgetting=null", "tracker=off"]


def jobs(roots, *arguments: str) -> Job:
    from ablora.spec import RunSpec

    cells = ask([*SHORT, *arguments], multirun=True).cells
    packs = tuple((create(roots, build(cell.tree, RunSpec)).id,) for cell in cells)
    return Job(packs, roots, "s", TrackerConfig(kind="off"))


def test_packs_of_a_base_have_one_preparation_by_few_runs(roots):
    job = jobs(roots, "method=lora,random_svd", "seed=0,1,2", "model.dtype=float32,bfloat16")
    found = groups(job, job.packs)
    assert [len(group.packs) for group in found] == [6, 6]
    assert len({group.base for group in found}) == 2
    for group in found:
        assert set(group.runs) <= {run for pack in group.packs for run in pack}
        assert len(group.runs) == 4, "one of lora, whose seeds need the same, and three random starts"
        assert len(group.keys) == len(set(group.keys))


def test_what_a_preparation_makes_is_lacking_no_more(roots, study):
    job = jobs(roots, "method=pissa,lora", "seed=0,1")
    (group,) = groups(job, job.packs)
    assert group.keys
    prepare_in_task(replace(job, packs=(group.runs,)), study / "done")
    assert (study / "done").exists()
    (after,) = groups(job, job.packs)
    assert (after.keys, after.runs) == ((), ())


def test_what_has_no_specification_needs_nothing(roots):
    job = replace(jobs(roots), packs=(("slot-1",), ("slot-2",)))
    (group,) = groups(job, job.packs)
    assert (group.packs, group.keys) == (job.packs, ())
