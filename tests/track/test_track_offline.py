"""Offline logs written by the real client, read back record by record."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tracked_runs import Trainer, spec_of, steps_of, whole_run

from ablora.track.sync import rebuild
from ablora.tree import to_tree


def test_two_runs_interleaved_in_one_process_do_not_mix(roots, tracker, alone, said):
    (roots.studies / "older").mkdir(parents=True)
    first, second = spec_of(seed=0), spec_of(seed=1)
    observer = tracker(study="question", project="lab", shared=True)
    a, b = Trainer(roots, observer, first, offset=0.0), Trainer(roots, observer, second, offset=100.0)
    (roots.studies / "older" / "manifest.jsonl").write_text(json.dumps({"id": a.folder.id}) + "\n")
    a.start()
    b.start()
    for step in range(1, 21):
        a.step(step, step)
        b.step(step, step)
    b.evaluate(20).end()
    a.evaluate(20).end()
    for run in (a, b):
        log = run.log()
        assert {r.run_id for r in log.runs} == {run.folder.id}
        assert log.runs[0].display_name == f"milora r8 lr1e-3 seed{run.spec.seed}"
        assert log.runs[0].job_type == "milora"
        assert log.runs[0].project == "lab"
        assert {key: log.config[key] for key in to_tree(run.spec)} == json.loads(json.dumps(to_tree(run.spec)))
        assert steps_of(log) == list(range(1, 21))
        assert len(log.rows) == 22
        assert [row["_step"] for row in log.rows] == list(range(22))
        assert all(run.offset < row["train/loss_nats"] <= run.offset + 1 for row in log.rows if "train/lr" in row)
        assert [row["timing/wall_s"] for row in log.rows if "train/lr" in row] == [0.5 * s for s in range(1, 21)]
        assert [r["step"] for r in log.rows if "eval/answer_loss/answer_loss_nats" in r] == [0, 20]
        assert log.axes["train/*"] == log.axes["eval/*"] == "step"
        assert log.summary["answer_loss_nats"] == run.offset + 2.0
        assert log.summary["trainable_parameters"] == 4096
        assert log.exit_codes == [0]
    assert list(a.log().runs[0].tags) == ["older", "question"]
    assert list(b.log().runs[0].tags) == ["question"]
    assert a.log().runs[0].run_group == b.log().runs[0].run_group
    assert list(alone.iterdir()) == []
    assert said() == []


def test_the_group_is_the_cell_without_its_seed():
    from ablora.track.describe import group

    assert group(spec_of(seed=0)) == group(spec_of(seed=7))
    assert len({group(spec_of()), group(spec_of(method="pissa")), group(spec_of(lr=3e-4))}) == 3
    assert len(group(spec_of())) == 12


@pytest.mark.parametrize(("lr", "text"), [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.1, "1e-1"), (3.0, "3e0")])
def test_label(lr, text):
    from ablora.track.describe import label

    assert label(spec_of(seed=2, lr=lr)) == f"milora r8 lr{text} seed2"


def test_a_failed_run_says_so(roots, tracker):
    log = Trainer(roots, tracker(shared=True), spec_of()).start().step(1, 3).fail("diverged").log()
    assert log.exit_codes == [1]
    assert log.summary["failure_class"] == "diverged"
    assert steps_of(log) == [1, 2, 3]


def test_a_killed_trainer_and_its_resume_log_each_step_once(roots, tracker, tmp_path):
    """kill -9 at step 12 with a checkpoint at step 10: one log in the end, with each step once."""
    here = Path(__file__).parent
    program = f"""
        import sys, time
        sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]
        from pathlib import Path
        from ablora.store.roots import Roots
        from ablora.track import TrackerConfig, make
        from tracked_runs import Trainer, spec_of
        roots = Roots(*map(Path, {[str(roots.runs), str(roots.studies), str(roots.cache)]!r}))
        run = Trainer(roots, make(TrackerConfig("wandb"), None, roots), spec_of()).start().step(1, 12)
        while not list(run.folder.path.glob("wandb/offline-run-*/*.wandb")):
            time.sleep(0.05)
        print("ready", flush=True)
        time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    run = Trainer(roots, tracker(shared=True), spec_of())
    assert len(list(run.folder.path.glob("wandb/offline-run-*"))) == 1
    run.start(step=10).step(11, 20).evaluate(20).end()
    log = run.log()
    assert steps_of(log) == list(range(1, 21))
    assert len(log.rows) == 22
    assert log.exit_codes == [0]
    assert {r.run_id for r in log.runs} == {run.folder.id}


def test_a_trainer_that_stops_leaves_a_run_that_may_go_on(roots, tracker):
    observer = tracker()
    run = Trainer(roots, observer, spec_of()).start().step(1, 5)
    observer.close()
    log = run.log()
    assert log.preempting == 1
    assert steps_of(log) == [1, 2, 3, 4, 5]
    assert json.loads((run.folder.path / "track.json").read_text())["state"] == "open"


def test_rebuild_from_the_folder_alone_gives_the_same_rows(roots, tracker):
    run = whole_run(roots, tracker(project="lab", shared=True))
    before = run.log()
    made = rebuild(roots, run.folder.id)
    after = run.log()
    strip = [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in before.rows]
    assert [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in after.rows] == strip
    assert len(strip) == 22
    assert after.summary["answer_loss_nats"] == 2.0
    assert after.runs[0].project == "lab"
    assert after.exit_codes == [0]
    assert made.parent == run.folder.path / "wandb"


def test_rebuild_of_a_run_that_was_never_tracked(roots, tracker):
    run = whole_run(roots, tracker(kind="off"))
    assert not (run.folder.path / "wandb").exists()
    rebuild(roots, run.folder.id)
    assert steps_of(run.log()) == list(range(1, 21))


def test_nothing_of_the_machine_reaches_the_log(roots, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "someone-elses")
    monkeypatch.setenv("WANDB_SWEEP_ID", "someone-elses")
    monkeypatch.setenv("WANDB_TAGS", "someone-elses")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-token")
    run = whole_run(roots, tracker())
    log = run.log()
    assert log.runs[0].run_id == run.folder.id
    assert list(log.runs[0].tags) == []
    assert log.runs[0].sweep_id == ""
    for path in run.folder.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"hunter2-token" not in content
            assert b"someone-elses" not in content
    names = {path.name for path in run.folder.path.rglob("*")}
    assert not names & {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}
