"""Worker processes with a fake training: each run once, deaths seen and mended, an interrupt that loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fake_execute
from ablora.cli import main
from ablora.dispatch import local
from ablora.store import lines
from ablora.store.run_folder import folder_of

TESTS = Path(__file__).parents[1]
LOCAL = ["train=quick", "tracker=off", "cluster=local", "cluster.workers=2", "cluster.threads=1", "study=s"]


@pytest.fixture(autouse=True)
def _fake_workers(roots, monkeypatch):
    import fake_worker

    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr("ablora.dispatch.local.work_in_worker", fake_worker.work_in_worker)


def starts(roots) -> dict[str, int]:
    return {path.parent.name: len(path.read_text().splitlines()) for path in roots.runs.glob("*/executed.txt")}


def of_seed(roots, seed: int):
    rows = lines.read(roots.studies / "s/manifest.jsonl")
    return next(folder_of(roots, row["id"]) for row in rows if row["labels"]["seed"] == seed)


def test_workers_run_each_run_once_and_a_failure_ends_nothing(roots, capsys):
    assert main(["run", "-m", *LOCAL, f"seed=0,1,2,3,4,{fake_execute.BUG}"]) == 3
    assert set(starts(roots).values()) == {1}
    assert len(starts(roots)) == 6
    assert "1 of 6 runs are not done: 1 runs (1 failed)" in capsys.readouterr().err
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["cache", "runs", "studies"]
    assert (roots.studies / "s/jobs").is_dir()


def test_a_killed_worker_is_noticed_and_its_run_is_resumed(roots, capsys):
    arguments = ["run", "-m", *LOCAL, f"seed={fake_execute.DIES},0,1"]
    assert main(arguments) == 3
    said = capsys.readouterr().err
    dead = of_seed(roots, fake_execute.DIES)
    assert f"{dead.id} lost: its process died at step 2" in said
    assert main(["status", "s"]) == 0
    assert "3 runs (1 done, 2 lost)" in capsys.readouterr().out, "the run and its pack-mate"
    assert main(arguments) == 0
    assert starts(roots)[dead.id] == 2
    assert [r["step"] for r in lines.read(dead.metrics)] == [1, 2, 3]


def test_an_interrupt_stops_workers_at_a_step_and_loses_nothing(roots):
    program = (
        "import sys, ablora.dispatch.local, fake_worker; "
        "ablora.dispatch.local.work_in_worker = fake_worker.work_in_worker; "
        "from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "run", "-m", *LOCAL, f"seed={fake_execute.SLOW},0"]
    # A session of its own, as a terminal's foreground group: Ctrl-C goes to the parent, submitit's and the workers.
    # A shell's background job ignores Ctrl-C, and so would all that it starts, this suite included.
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _until(lambda: any(lines_of(path) > 3 for path in roots.runs.glob("*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    slow = of_seed(roots, fake_execute.SLOW)
    assert f"{slow.id} not finished: step" in said
    assert (slow.path / "claim.0.released").exists()
    assert not slow.failure.exists()


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def _until(holds, patience_s: float = 90) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("worker", "visible", "count", "wanted"),
    [(0, None, 0, None), (1, None, 1, None), (1, None, 2, "1"), (3, "4,7", 2, "7"), (1, "", 0, ""), (1, "5", 1, "5")],
)
def test_workers_take_the_gpus_by_turns(worker, visible, count, wanted):
    assert local.own_gpu(worker, visible, count) == wanted
