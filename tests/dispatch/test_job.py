"""One process and its job: claims, failures in words, observers that break."""

import errno
import json
import weakref
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
from ablora.store.claims import Fenced, is_held, latest, release, take
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
    one = replace(spec, train=replace(spec.train, batch_size=1))  # nothing to be cut
    job, (memory, good) = job_of(roots, one, fake_execute.MEMORY, 0)
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


def packed(job: Job) -> Job:
    return replace(job, packs=(tuple(job.runs),))


@pytest.mark.parametrize(("error", "kind"), [(ZeroDivisionError(), "bug"), (OSError(errno.ENOSPC, ""), "disk_full")])
def test_a_failure_that_names_no_run_ends_its_own_and_no_other(roots, spec, monkeypatch, error, kind):
    """A pack that fails as a whole is halved until it is known whose failure that is."""
    job, folders = job_of(roots, spec, 0, 1, 2, 3, 4)
    real = fake_execute.execute

    def with_one_bad(pack, *rest):
        if folders[2] in pack:
            raise error
        real(pack, *rest)

    monkeypatch.setattr("ablora.dispatch.job.execute", with_one_bad)
    work(packed(job))
    assert [f.result.exists() for f in folders] == [True, True, False, True, True]
    assert folders[2].read_failure()["class"] == kind
    assert not any(map(is_held, folders))


def test_a_pack_that_runs_out_of_memory_goes_on_in_halves(roots, spec, monkeypatch, capsys):
    """Two fit at a time."""
    sizes = []
    real = fake_execute.execute

    def narrow(pack, *rest):
        sizes.append(len(pack))
        if len(pack) > 2:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        real(pack, *rest)

    monkeypatch.setattr("ablora.dispatch.job.execute", narrow)
    job, folders = job_of(roots, spec, *range(5))
    work(packed(job))
    assert sizes == [5, 3, 2, 1, 2]
    assert all(f.result.exists() for f in folders)
    assert "a pack of 5 runs: out_of_memory" in capsys.readouterr().err


@pytest.mark.parametrize(("dropout", "asked"), [(0.0, [None, 4, 2, 1]), (0.1, [None])])
def test_a_run_that_does_not_fit_alone_is_cut_where_no_number_depends_on_it(roots, spec, monkeypatch, dropout, asked):
    given = []

    def full(pack, claims, roots, observers, threads, most_examples, judge):
        given.append(most_examples)
        raise MemoryError("no memory")

    monkeypatch.setattr("ablora.dispatch.job.execute", full)
    wet = replace(spec, adapter=replace(spec.adapter, dropout=dropout), train=replace(spec.train, batch_size=8))
    job, (folder,) = job_of(roots, wet, 0)
    work(job)
    assert given == asked
    assert folder.read_failure()["class"] == "out_of_memory"


def test_a_run_that_was_taken_over_leaves_its_pack(roots, spec, monkeypatch, capsys):
    job, (first, lost, last) = job_of(roots, spec, 0, 1, 2)
    real = fake_execute.execute

    def overtaken(pack, *rest):
        if lost in pack:
            (lost.path / "claim.1.json").write_text("{}")
            raise Fenced(f"run {lost.id}: claim 0 was taken over")
        real(pack, *rest)

    monkeypatch.setattr("ablora.dispatch.job.execute", overtaken)
    work(packed(job))
    assert [f.result.exists() for f in (first, lost, last)] == [True, False, True]
    assert not lost.failure.exists()
    assert "was taken over" in capsys.readouterr().err


def test_an_error_that_was_dealt_with_holds_no_memory(roots, spec, monkeypatch):
    """What the pack had on its way to the failure is gone when its halves begin."""
    held = []
    real = fake_execute.execute

    def greedy(pack, *rest):
        if len(pack) > 1:
            large = torch.zeros(10)
            held.append(weakref.ref(large))
            raise MemoryError
        assert [ref() for ref in held] == [None]
        real(pack, *rest)

    monkeypatch.setattr("ablora.dispatch.job.execute", greedy)
    job, folders = job_of(roots, spec, 0, 1)
    work(packed(job))
    assert all(f.result.exists() for f in folders)
