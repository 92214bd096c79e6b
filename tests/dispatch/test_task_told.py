"""A task that is told to stop, and one that is requeued: which runs it takes up, and whether it asks for another."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from signal import SIGTERM, SIGUSR2

import pytest

import fake_execute
from ablora.config import ask
from ablora.dispatch.base import Job
from ablora.dispatch.task import work_in_task
from ablora.spec import RunSpec
from ablora.store import claims, lines
from ablora.store.run_folder import create
from ablora.track import TrackerConfig
from ablora.train.stop import Stopped
from ablora.tree import build
from control_plane import claimed


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A task sets handlers for the rest of its process."""
    before = {number: signal.getsignal(number) for number in (SIGTERM, SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("fake")
def test_a_requeued_task_follows_its_earlier_life_and_nobody_else(roots, monkeypatch):
    spec = build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)
    mine, other, same_life, judged = folders = [create(roots, replace(spec, seed=seed)) for seed in range(4)]
    for name, value in (("JOB_ID", "8"), ("ARRAY_JOB_ID", "7"), ("ARRAY_TASK_ID", "3"), ("RESTART_COUNT", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    claimed(judged, "5_0")
    sent = {folder.id: claims.latest(folder) for folder in folders}
    claimed(mine, "7_3", restart=0)
    claimed(other, "7_4", restart=0)
    claimed(same_life, "7_3", restart=1)
    job = Job(tuple((folder.id,) for folder in folders), roots, "p", TrackerConfig("off"))
    work_in_task(job, sent, 1, 0)
    assert [folder.result.exists() for folder in folders] == [True, False, False, True]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("number", "steps", "short_s", "code"),
    [(SIGUSR2, 5, 0, 75), (SIGUSR2, 0, 0, None), (SIGUSR2, 0, 60, 75), (SIGUSR2, 0, None, 75), (SIGTERM, 5, 0, None)],
    ids=["steps", "no step in its time", "preempted early", "no end", "scancel"],
)
def test_a_warned_task_asks_to_be_requeued_unless_it_got_nowhere(roots, monkeypatch, number, steps, short_s, code):
    spec = build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)
    folder = create(roots, spec)

    def stopped(*_):
        lines.append(folder.metrics, [{"kind": "train", "step": steps}] if steps else [])
        raise Stopped(number)

    monkeypatch.setattr("ablora.dispatch.job.execute", stopped)
    job = Job(((folder.id,),), roots, "p", TrackerConfig("off"))
    if code is None:
        work_in_task(job, {folder.id: -1}, 1, short_s)
        return
    with pytest.raises(SystemExit) as leaving:
        work_in_task(job, {folder.id: -1}, 1, short_s)
    assert leaving.value.code == code


@pytest.mark.usefixtures("fake")
def test_a_signal_that_came_before_python_could_hear_it_is_heard(roots):
    """As the batch script starts Python: with SIGUSR2 kept back."""
    spec = build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)
    folder = create(roots, spec)
    job = Job(((folder.id,),), roots, "p", TrackerConfig("off"))
    before = signal.getsignal(SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, (SIGUSR2,))
    try:
        signal.raise_signal(SIGUSR2)  # to this thread: others of this process would take it
        with pytest.raises(SystemExit) as leaving:
            work_in_task(job, {folder.id: -1}, 1, 60)
    finally:
        signal.signal(SIGUSR2, before)
    assert leaving.value.code == 75
    assert claims.latest(folder) == -1, "the run was not begun"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "nothing is kept back any more"


@pytest.mark.usefixtures("fake")
def test_a_signal_between_runs_ends_the_task_at_once(roots, monkeypatch):
    spec = build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)
    first, second = (create(roots, replace(spec, seed=seed)) for seed in range(2))
    real = fake_execute.execute

    def then_told(*arguments):
        real(*arguments)
        os.kill(os.getpid(), SIGUSR2)

    monkeypatch.setattr("ablora.dispatch.job.execute", then_told)
    job = Job(((first.id,), (second.id,)), roots, "p", TrackerConfig("off"))
    with pytest.raises(SystemExit):
        work_in_task(job, job.claims(), 1, 0)
    assert first.result.exists()
    assert not (second.path / "executed.txt").exists()
