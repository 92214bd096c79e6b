"""Online tracking and uploads, by the real client, against a small server in W&B's place."""

import json

import pytest
from tracked_runs import Trainer, spec_of, whole_run

from ablora.spec import BadInput
from ablora.store import atomic, claims
from ablora.track import channel
from ablora.track.sync import sync


@pytest.fixture
def patient(monkeypatch):
    """A worker that is told to go has time to send what it holds; on a busy machine five seconds were too few."""
    monkeypatch.setattr(channel, "LEAVE_S", 60.0)


def note_of(run: Trainer) -> dict:
    return json.loads((run.folder.path / "track.json").read_text())


def train_steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows if "train/loss_nats" in row]


def test_a_login_makes_it_online(roots, tracker, service, said):
    run = whole_run(roots, tracker(study="question", entity="lab"))
    stored = service.runs[run.folder.id]
    assert said() == []
    assert note_of(run)["mode"] == "online"
    assert train_steps(stored.rows()) == list(range(1, 21))
    assert len(stored.received) == 22
    first = stored.upserts[0]
    assert (first["displayName"], first["tags"], first["entity"]) == ("milora r8 lr1e-3 seed0", ["question"], "lab")
    assert json.loads(first["config"])["train"]["value"]["lr"] == 1e-3
    assert stored.summary["answer_loss_nats"] == 2.0
    assert stored.exit_codes == [0]


def test_a_resumed_run_online_sends_no_step_twice(roots, tracker, service, said, patient):
    """Stopped after step 12 with a checkpoint at 10: the server has 12, the new process sends from 13 on."""
    first = tracker()
    run = Trainer(roots, first, spec_of()).start().step(1, 12)
    first.close()
    stored = service.runs[run.folder.id]
    assert stored.received == list(range(13))
    run.observer = tracker()
    run.start(step=10).step(11, 20).evaluate(20).end()
    assert said() == []
    assert note_of(run)["mode"] == "online"
    assert train_steps(stored.rows()) == list(range(1, 21))
    assert stored.received == list(range(22))
    assert stored.exit_codes[-1] == 0


def test_a_run_that_was_partly_online_is_whole_after_a_sync(roots, tracker, service, patient):
    first = tracker()
    run = Trainer(roots, first, spec_of()).start().step(1, 12)
    first.close()
    run.observer = tracker(mode="offline", shared=True)
    run.start(step=10).step(11, 20).evaluate(20).end()
    assert sync(roots, None) == 0
    assert train_steps(service.runs[run.folder.id].rows()) == list(range(1, 21))
    assert service.runs[run.folder.id].received == list(range(22))
    assert sync(roots, None) == 0
    assert len(service.runs[run.folder.id].received) == 22


def test_a_failed_run_that_was_uploaded_and_then_succeeds_is_whole(roots, tracker, service):
    watcher = tracker(mode="offline", shared=True)
    run = Trainer(roots, watcher, spec_of()).start().step(1, 12).fail("out_of_memory")
    assert sync(roots, None) == 0
    stored = service.runs[run.folder.id]
    assert stored.exit_codes == [1]
    run.folder.failure.unlink()
    run.start(step=10).step(11, 20).evaluate(20).end()
    assert sync(roots, None) == 0
    assert stored.received == list(range(22))
    assert stored.exit_codes == [1, 0]
    assert stored.summary["answer_loss_nats"] == 2.0


def test_sync_uploads_each_run_once(roots, tracker, service, capsys, monkeypatch):
    watcher = tracker(mode="offline")
    runs = [whole_run(roots, watcher, seed=seed) for seed in range(2)]
    killed = Trainer(roots, watcher, spec_of(seed=2)).start().step(1, 20).evaluate(20)
    watcher.close()  # the tracker went before the end of this one: its log is made again
    killed.observer = tracker(kind="off")
    killed.end()
    unfinished = Trainer(roots, tracker(mode="offline"), spec_of(seed=3)).start()
    unfinished.observer.close()
    assert sync(roots, None) == 0
    for run in [*runs, killed]:
        stored = service.runs[run.folder.id]
        assert train_steps(stored.rows()) == list(range(1, 21))
        assert stored.exit_codes == [0]
        assert (run.folder.path / "uploaded.json").exists()
    assert unfinished.folder.id not in service.runs
    said = capsys.readouterr().out
    assert "uploaded 3 of 3 runs" in said
    assert "1 runs have not ended" in said
    before = {run: len(stored.received) for run, stored in service.runs.items()}
    assert sync(roots, None) == 0
    assert "nothing to upload" in capsys.readouterr().out
    assert {run: len(stored.received) for run, stored in service.runs.items()} == before


def test_one_bad_run_does_not_keep_back_the_rest(roots, tracker, service, capsys):
    watcher = tracker(mode="offline", shared=True)
    runs = [whole_run(roots, watcher, seed=seed) for seed in range(3)]
    (log,) = runs[1].folder.path.glob("wandb/*/*.wandb")
    log.write_bytes(b"not a log")
    assert sync(roots, None) == 3
    assert {run.folder.id for run in runs if (run.folder.path / "uploaded.json").exists()} == {
        runs[0].folder.id,
        runs[2].folder.id,
    }
    assert f"not uploaded: {runs[1].folder.id}" in capsys.readouterr().out


def test_sync_of_a_study_takes_its_runs_alone(roots, tracker, service):
    watcher = tracker(mode="offline", shared=True)
    inside, outside = whole_run(roots, watcher, seed=0), whole_run(roots, watcher, seed=1)
    manifest = roots.studies / "question" / "manifest.jsonl"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"id": inside.folder.id}) + "\n")
    assert sync(roots, "question") == 0
    assert set(service.runs) == {inside.folder.id}
    with pytest.raises(BadInput, match="question"):
        sync(roots, "answer")
    assert not (outside.folder.path / "uploaded.json").exists()


def test_without_a_login_sync_says_what_to_do(roots, tracker, capsys):
    assert sync(roots, None) == 0
    run = whole_run(roots, tracker(shared=True))
    assert sync(roots, None) == 2
    assert "wandb login" in capsys.readouterr().out
    assert not (run.folder.path / "uploaded.json").exists()


def test_a_run_that_is_held_is_left_alone(roots, monkeypatch, capsys):
    run = Trainer(roots, None, spec_of())
    atomic.write_json(run.folder.path / "track.json", {"mode": "offline", "state": "closed", "ended": "done"})
    atomic.write_json(run.folder.result, {"id": run.folder.id, "metrics": {}})
    assert claims.take(run.folder) is not None
    assert sync(roots, None) == 0
    assert "1 runs are running" in capsys.readouterr().out
