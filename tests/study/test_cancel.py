"""What `ablora cancel` refuses, and what it leaves to others. What it ends: tests/cluster/test_cancelled.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.dispatch import scheduler, submissions
from ablora.dispatch.scheduler import NoAnswer, Task


def sent(study: Path, user: str) -> submissions.Submission:
    record = submissions.begin(study, [["a" * 12]], "lab", Path("code"), 30.0)
    return submissions.write(study, replace(record, user=user, job=f"{len(user)}", phase="released"))


def test_a_study_of_this_machine_is_refused(roots, fake, capsys):
    assert main(["run", "-m", "train=quick", "tracker=off", "cluster=inline", "study=s", "seed=0"]) == 0
    capsys.readouterr()
    assert main(["cancel", "s"]) == 2
    legal = "a study that was sent to SLURM; one on this machine ends by Ctrl-C in its terminal"
    assert f"STUDY='s' is not legal: {legal}" in capsys.readouterr().err


def test_a_study_that_is_not_there_is_named(roots, capsys):
    assert main(["cancel", "nowhere"]) == 2
    assert "STUDY='nowhere'" in capsys.readouterr().err


def test_what_another_user_sent_is_left_to_them(roots, fake, capsys, monkeypatch):
    assert main(["run", "-m", "train=quick", "tracker=off", "cluster=inline", "study=s", "seed=0"]) == 0
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    mine, other = (sent(roots.studies / "s", user) for user in ("me", "alice"))
    queue = {"2": Task("RUNNING", "", 0, mine.name), "5": Task("PENDING", "", 0, other.name)}
    monkeypatch.setattr(scheduler, "queued", lambda users: queue | {"9": Task("RUNNING", "", 0, "abl-another")})
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(scheduler, "ask", lambda *command: asked.append(command) or "")
    capsys.readouterr()
    assert main(["cancel", "s"]) == 0
    assert asked == [("scancel", "--user=me", f"--name={mine.name}")]
    assert capsys.readouterr().out.splitlines() == [
        "cancelled 1 task that ran",
        "when they have ended, ablora retry s --only cancelled goes on with them",
        "1 task of alice, who alone can cancel what is theirs",
    ]


def test_where_all_is_somebody_elses_nothing_is_cancelled(roots, fake, capsys, monkeypatch):
    assert main(["run", "-m", "train=quick", "tracker=off", "cluster=inline", "study=s", "seed=0"]) == 0
    other = sent(roots.studies / "s", "alice")
    monkeypatch.setattr(scheduler, "queued", lambda users: {"5_0": Task("RUNNING", "", 0, other.name)})
    monkeypatch.setattr(scheduler, "ask", lambda *command: pytest.fail(f"asked {command}"))
    capsys.readouterr()
    assert main(["cancel", "s"]) == 0
    assert capsys.readouterr().out == "1 task of alice, who alone can cancel what is theirs\n"


def test_a_slurm_that_does_not_answer_is_said(roots, fake, capsys, monkeypatch):
    assert main(["run", "-m", "train=quick", "tracker=off", "cluster=inline", "study=s", "seed=0"]) == 0
    sent(roots.studies / "s", "me")

    def silent(*users):
        raise NoAnswer("squeue did not answer in 60 s")

    monkeypatch.setattr(scheduler, "queued", silent)
    assert main(["cancel", "s"]) == 2
    assert "squeue did not answer in 60 s" in capsys.readouterr().err
