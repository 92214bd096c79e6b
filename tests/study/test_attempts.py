"""What is tried again by itself, how often, and what only when asked for."""

import json
from dataclasses import replace

import pytest

from ablora.cli import main
from ablora.dispatch import scheduler, submissions
from ablora.dispatch.attempts import MOST
from ablora.dispatch.queue import Queue
from ablora.dispatch.task import _judged
from ablora.store.claims import latest, take, whoami
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import Row
from ablora.study.reconcile import clear_failures, reconcile
from ablora.study.settle import settle
from ablora.study.status import standing


def die(folder: RunFolder, times: int = 1) -> None:
    """As processes that claimed the run and were killed."""
    for _ in range(times):
        folder.path.mkdir(parents=True, exist_ok=True)
        claim = take(folder)
        assert claim is not None
        path = folder.path / f"claim.{claim.generation}.json"
        path.write_text(json.dumps({**whoami(), "started": "another process"}))


ROWS = [Row("a", {"seed": 0}, "lora", 0), Row("b", {"seed": 1}, "lora", 0)]


def test_a_run_that_kills_its_process_again_and_again_is_left_alone_until_asked_for(roots):
    folder = folder_of(roots, "a")
    die(folder, MOST - 1)
    assert ("a",) in reconcile(roots, ROWS).packs
    die(folder)
    assert reconcile(roots, ROWS).packs == (("b",),)
    assert standing(folder).state == "lost"
    assert clear_failures(roots, ROWS, None) == ["a"]
    assert ("a",) in reconcile(roots, ROWS).packs
    die(folder, MOST - 1)
    assert ("a",) in reconcile(roots, ROWS).packs
    die(folder)
    assert reconcile(roots, ROWS).packs == (("b",),)
    assert clear_failures(roots, ROWS, None) == ["a"]
    assert sorted(path.name for path in folder.path.glob("failure*")) == ["failure.0.json", "failure.1.json"]
    assert "died 10 times" in json.loads((folder.path / "failure.1.json").read_text())["message"]


def test_the_command_says_so(roots, fake, capsys):
    quick = ["train=quick", "tracker=off", "seed=0", "study=s"]
    assert main(["run", "-m", *quick]) == 0
    (run,) = roots.runs.iterdir()
    (run / "result.json").unlink()
    die(RunFolder(run), MOST)
    starts = (run / "executed.txt").read_text()
    capsys.readouterr()
    assert main(["run", "-m", *quick]) == 3
    assert (
        f"lost: its process died {MOST} times without a word; `ablora retry` tries it again" in capsys.readouterr().err
    )
    assert (run / "executed.txt").read_text() == starts
    assert main(["retry", "s"]) == 0
    assert (run / "executed.txt").read_text() != starts


def test_a_task_that_slurm_starts_again_and_again_is_no_exception(roots, monkeypatch):
    folder = folder_of(roots, "a")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    owners = []
    for life in range(MOST):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(life))
        die(folder)
        owners.append(whoami())
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(life + 1))
        seen, dead = _judged([folder], {"a": -1})
        assert (seen["a"] == latest(folder)) is (life < MOST - 1), (
            "its earlier life is followed until there were too many"
        )
        assert bool(dead) is (life < MOST - 1)
    assert {owner["slurm"] for owner in owners} == {"7"}


@pytest.mark.parametrize(
    ("runs", "end", "state", "packs"),
    [
        (("a", "b"), "OUT_OF_MEMORY", "lost", (("a",), ("b",))),
        (("a",), "OUT_OF_MEMORY", "failed", ()),
        (("a", "b"), "CANCELLED", "failed", ()),
        (("a", "b"), "NODE_FAIL", "lost", (("a",), ("b",))),
        (("a",), "PREEMPTED", "lost", (("a",),)),
        (("a",), "TIMEOUT", "lost", (("a",),)),
    ],
)
def test_what_slurm_ended_is_sent_again_or_not(roots, monkeypatch, runs, end, state, packs):
    """Memory that a pack was out of is tried with halves of it, and a run by itself only when asked for."""
    for run in runs:
        die(folder_of(roots, run))
    record = submissions.begin(roots.studies / "s", [runs], "lab", roots.studies / "code", 0.001)
    submissions.write(roots.studies / "s", replace(record, job="7", phase="released"))
    monkeypatch.setattr(scheduler, "queued", lambda users: {})
    monkeypatch.setattr(scheduler, "ended", lambda jobs: {"7": end})
    monkeypatch.setattr(scheduler, "configuration", lambda: {"ClusterName": "lab"})
    queue = Queue(roots, roots.studies / "s")
    settle(queue)
    assert standing(folder_of(roots, "a"), queue).state == state
    assert folder_of(roots, "a").failure.exists() is (state == "failed")
    assert reconcile(roots, [row for row in ROWS if row.id in runs], queue).packs == packs
