"""Several processes of one task: each its GPU, its packs first, and all of them heard at the end of its time."""

import os
from dataclasses import replace
from signal import SIGUSR2

import pytest

from ablora.config import ask
from ablora.dispatch import task
from ablora.dispatch.base import Job
from ablora.spec import RunSpec
from ablora.store import lines
from ablora.store.run_folder import create
from ablora.track import TrackerConfig
from ablora.train.stop import Stopped
from ablora.tree import build


@pytest.fixture(autouse=True)
def _second_of_two(monkeypatch):
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # given back after the test, whatever it sets


def job_of(roots, *packs: int) -> Job:
    """Packs of so many runs."""
    spec = build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)
    folders = iter([create(roots, replace(spec, seed=seed)) for seed in range(sum(packs))])
    return Job(tuple(tuple(next(folders).id for _ in range(n)) for n in packs), roots, "p", TrackerConfig("off"))


@pytest.mark.parametrize(
    ("seen", "own"),
    [("0,1", "1"), ("4,7", "7"), ("GPU-a,GPU-b", "GPU-b"), ("MIG-a", "MIG-a"), (None, "1"), ("", "")],
)
def test_a_process_sees_its_own_gpu(seen, own, monkeypatch):
    """A site that has bound one to each process already is left at that."""
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert task._take_place() == (1, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_one_process_is_left_what_it_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    assert task._take_place() == (0, 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_process_begins_with_packs_that_are_no_others(count):
    packs = [(f"run{i}",) for i in range(7)]
    orders = [task._own_first(packs, number, count) for number in range(count)]
    assert all(sorted(order) == packs for order in orders), "and comes to all of them"
    own = [order[: len(packs[number::count])] for number, order in enumerate(orders)]
    assert sorted(pack for some in own for pack in some) == packs
    assert orders[0][: len(own[0])] == tuple(packs[::count])
    if count == 2:
        assert orders[1][3:] == (("run6",), ("run4",), ("run2",), ("run0",)), "the others' last ones first"


@pytest.mark.usefixtures("fake")
def test_a_process_helps_with_what_nobody_is_at(roots):
    job = job_of(roots, 1, 1, 1)
    task.work_in_task(job, job.claims(), 1, 0)
    order = sorted(job.runs, key=lambda run: (roots.runs / run / "result.json").stat().st_mtime_ns)
    assert order == [job.runs[1], job.runs[2], job.runs[0]]


@pytest.mark.usefixtures("fake")
def test_the_wish_to_be_requeued_is_a_file_where_another_process_was_killed(roots, monkeypatch, tmp_path):
    job, file = job_of(roots, 1, 1), tmp_path / "7_0.again"
    monkeypatch.setenv(task.AGAIN_FILE, str(file))

    def stopped(pack, *_):
        lines.append(pack[0].metrics, [{"kind": "train", "step": 5}])
        raise Stopped(SIGUSR2)

    monkeypatch.setattr("ablora.dispatch.job.execute", stopped)
    with pytest.raises(SystemExit) as leaving:
        task.work_in_task(job, job.claims(), 1, 0)
    assert leaving.value.code == task.AGAIN
    assert file.exists()
