"""A search on a real SLURM: its trials are tasks, their number is exact, and a worker that dies loses none."""

import os
import signal

from ablora.store import atomic, lines
from ablora.store.run_folder import RunFolder, folder_of
from fake_execute import UNTIL
from slurm_lab import Lab, until

SEARCH = ["tuner=optuna", "tuner.at_once=1", "train.lr=tag(log,interval(1e-4,3e-2))", f"seed={UNTIL}"]


def trials(lab: Lab) -> dict[int, dict]:
    """What was proposed, by the trial's number."""
    files = (lab.study / "search" / "trials").glob("*/trial.json")
    return {record["number"]: record for record in map(atomic.read_json, files)}


def run_of(lab: Lab, number: int) -> RunFolder:
    return folder_of(lab.roots, trials(lab)[number]["run"])


def pids(folder: RunFolder) -> list[int]:
    file = folder.path / "executed.txt"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def train(lab: Lab) -> bool:
    """Whether all four are at their steps."""
    found = trials(lab)
    return len(found) == 4 and all(len(list(lines.read(run_of(lab, number).metrics))) > 3 for number in found)


def test_a_worker_that_is_killed_loses_no_trial_and_adds_none(lab: Lab, capsys):
    assert lab.run(*SEARCH, "tuner.trials=4", "cluster.wait=false") == 0
    (sent,) = lab.records()
    assert [len(task) for task in sent.tasks] == [1, 1, 1, 1]
    assert "4 trials (" in capsys.readouterr().err
    until(lambda: train(lab))
    before = trials(lab)
    assert len({record["run"] for record in before.values()}) == 4
    os.kill(pids(run_of(lab, 2))[0], signal.SIGKILL)
    lab.go()
    until(lambda: not lab.queued())
    assert not run_of(lab, 2).result.exists()
    assert lab.run(*SEARCH, "tuner.trials=4") == 0, capsys.readouterr().err
    heard = "".join(capsys.readouterr())
    assert "4 trials (4 complete)" in heard
    assert "best of 4 complete" in heard
    assert trials(lab) == before, "the same proposals, of the same numbers, are the same runs"
    assert [len(pids(run_of(lab, number))) for number in range(4)] == [1, 1, 2, 1]
    for number in range(4):
        steps = [record["step"] for record in lines.read(run_of(lab, number).metrics)]
        assert steps == list(range(1, len(steps) + 1))
    assert len(list(lab.roots.runs.glob("*/result.json"))) == 4
    assert [len(record.tasks) for record in lab.records()] == [4, 1], "the lost one alone was sent again"


def test_a_search_is_added_to_and_its_new_trials_alone_are_sent(lab: Lab, capsys):
    lab.roots.runs.mkdir()
    lab.go()
    assert lab.run(*SEARCH, "tuner.trials=2") == 0, capsys.readouterr().err
    assert lab.run(*SEARCH, "tuner.trials=3") == 0, capsys.readouterr().err
    assert sorted(trials(lab)) == [0, 1, 2]
    assert [len(record.tasks) for record in lab.records()] == [2, 1]
    assert [len(pids(run_of(lab, number))) for number in range(3)] == [1, 1, 1]
