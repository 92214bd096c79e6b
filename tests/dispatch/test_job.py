"""One process and its job: claims, failures in words, observers that break."""

import errno
import json
from dataclasses import replace

import pytest
import torch

import fake_execute
from ablora.config import ask
from ablora.data._base import DataError
from ablora.dispatch.base import Interrupted, Job
from ablora.dispatch.job import failure_class, work
from ablora.spec import BadInput, RunSpec
from ablora.store import lines
from ablora.store.claims import is_held, latest, release, take
from ablora.store.run_folder import RunFolder, create
from ablora.track import TrackerConfig
from ablora.train.stop import Stopped
from ablora.tree import build

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return build(ask(["train=quick"], multirun=False).cells[0].tree, RunSpec)


def job_of(roots, spec, *seeds: int) -> tuple[Job, list[RunFolder]]:
    folders = [create(roots, replace(spec, seed=seed)) for seed in seeds]
    return Job(tuple((f.id,) for f in folders), roots, "s", TrackerConfig("off")), folders


def starts(folder: RunFolder) -> int:
    file = folder.path / "executed.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_every_run_is_executed_once_and_released(roots, spec):
    job, folders = job_of(roots, spec, 0, 1)
    work(job)
    work(job)
    assert [starts(f) for f in folders] == [1, 1]
    assert not any(map(is_held, folders))


def test_a_failure_is_written_down_and_the_next_run_starts(roots, spec):
    job, (memory, good) = job_of(roots, spec, fake_execute.MEMORY, 0)
    work(job)
    failure = memory.read_failure()
    assert (failure["class"], failure["message"], failure["step"]) == ("out_of_memory", "4 GiB asked for", 2)
    assert "Traceback" in failure["traceback"]
    assert list(lines.read(memory.events))[-1]["class"] == "out_of_memory"
    assert not is_held(memory)
    assert good.result.exists()


def test_a_held_run_is_left_alone(roots, spec):
    job, (held, free) = job_of(roots, spec, 0, 1)
    claim = take(held)
    assert claim is not None
    work(job)
    assert (starts(held), starts(free)) == (0, 1)
    release(claim)
    work(job)
    assert starts(held) == 1


def test_a_run_that_was_taken_over_gets_no_failure(roots, spec, capsys):
    job, (folder,) = job_of(roots, spec, fake_execute.FENCED)
    work(job)
    assert not folder.failure.exists()
    assert "was taken over" in capsys.readouterr().err


def test_a_run_that_another_worker_took_and_died_in_is_not_taken_at_once(roots, spec, monkeypatch):
    job, (first, second) = job_of(roots, spec, 0, 1)
    real = fake_execute.execute

    def meanwhile(pack, *rest):
        other = take(second)
        assert other is not None
        owner = second.path / f"claim.{other.generation}.json"
        owner.write_text(json.dumps({**json.loads(owner.read_text()), "pid": 2**22 + 1}))
        real(pack, *rest)

    monkeypatch.setattr("ablora.dispatch.job.execute", meanwhile)
    work(job)
    assert (starts(first), starts(second)) == (1, 0)
    monkeypatch.setattr("ablora.dispatch.job.execute", real)
    work(job)
    assert starts(second) == 1
    assert latest(second) == 1


@pytest.mark.parametrize("stop", [Stopped(15), KeyboardInterrupt()])
def test_a_stop_ends_the_job_and_releases_the_run(roots, spec, monkeypatch, stop):
    def stopped(*_):
        raise stop

    monkeypatch.setattr("ablora.dispatch.job.execute", stopped)
    job, folders = job_of(roots, spec, 0, 1)
    with pytest.raises(Interrupted):
        work(job)
    assert [latest(f) for f in folders] == [0, -1]
    assert not is_held(folders[0])


class Breaks:
    def started(self, *_):
        raise RuntimeError("no network")

    recorded = timed = finished = started


class Listens:
    def __init__(self):
        self.heard: list[str] = []

    def started(self, *_):
        self.heard.append("started")

    def recorded(self, *_):
        self.heard.append("recorded")

    def timed(self, *_): ...

    def finished(self, folder, state):
        self.heard.append(state)


def test_observers_see_the_run_and_a_broken_one_is_said_once(roots, spec, capsys):
    job, (folder,) = job_of(roots, spec, 0)
    listens = Listens()
    work(job, [Breaks(), listens])
    assert folder.result.exists()
    assert listens.heard == ["started", *["recorded"] * 3, "done"]
    assert capsys.readouterr().err.count("no network") == 1


def test_observers_hear_of_a_failure(roots, spec):
    job, _ = job_of(roots, spec, fake_execute.BUG)
    listens = Listens()
    work(job, [listens])
    assert listens.heard[-1] == "failed"


def test_a_tracker_that_cannot_be_made_stops_nothing(roots, spec, monkeypatch, capsys):
    def broken(*_):
        raise OSError("no space for its files")

    monkeypatch.setattr("ablora.dispatch.job.make", broken)
    job, (folder,) = job_of(roots, spec, 0)
    work(job)
    assert folder.result.exists()
    assert "no tracking: no space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (BadInput("rank", 0, "more"), "bad_input"),
        (DataError("a row"), "bad_input"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EACCES, "Permission denied"), "bug"),
        (ValueError("what?"), "bug"),
    ],
)
def test_failure_classes(error, word):
    assert failure_class(error) == word
