"""A search on a real SLURM: its trials are tasks, their number is exact, and a worker that dies loses none."""

import os
import signal

from ablora.dispatch import submissions
from ablora.store import atomic, lines
from ablora.store.run_folder import RunFolder, folder_of
from fake_execute import UNTIL
from slurm_lab import Lab, said, until

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


def train(lab: Lab, count: int) -> bool:
    """Whether all of them are at their steps."""
    found = trials(lab)
    return len(found) == count and all(len(list(lines.read(run_of(lab, number).metrics))) > 3 for number in found)


def test_a_worker_that_is_killed_loses_no_trial_and_adds_none(lab: Lab, capsys):
    assert lab.run(*SEARCH, "tuner.trials=4", "cluster.wait=false") == 0
    (sent,) = lab.records()
    assert [len(task) for task in sent.tasks] == [1, 1, 1, 1]
    assert "4 trials (" in capsys.readouterr().err
    until(lambda: train(lab, 4))
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


def test_a_preempted_trial_keeps_its_number_and_its_run(lab: Lab, capsys):
    a_node_each = ["cluster.cpus=4", "cluster.threads=1"]
    assert lab.run(*SEARCH, "tuner.trials=2", "cluster.wait=false", *a_node_each) == 0
    (sent,) = lab.records()
    until(lambda: train(lab, 2))
    before = trials(lab)
    said("sbatch", "--partition=high", "--nodelist=node1", "--cpus-per-task=4", "--mem=50",
         "--output=/dev/null", "--wrap=sleep 3")  # fmt: skip
    until(lambda: any((run_of(lab, number).path / "claim.0.released").exists() for number in before))
    (number,) = (number for number in before if (run_of(lab, number).path / "claim.0.released").exists())
    stopped = len(list(lines.read(run_of(lab, number).metrics)))
    (index,) = (i for i, task in enumerate(sent.tasks) if task == (before[number]["slot"],))
    lab.start_now(str(sent.task(index)))
    until(lambda: len(pids(run_of(lab, number))) == 2)
    lab.go()
    assert lab.run(*SEARCH, "tuner.trials=2", *a_node_each) == 0, capsys.readouterr().err
    assert trials(lab) == before
    assert len(pids(run_of(lab, 1 - number))) == 1
    steps = [record["step"] for record in lines.read(run_of(lab, number).metrics)]
    assert len(steps) > stopped
    assert steps == list(range(1, len(steps) + 1))
    assert len(lab.records()) == 1, "its task was requeued and not sent again"


def test_a_search_is_added_to_and_its_new_trials_alone_are_sent(lab: Lab, capsys):
    lab.roots.runs.mkdir()
    lab.go()
    assert lab.run(*SEARCH, "tuner.trials=2") == 0, capsys.readouterr().err
    assert lab.run(*SEARCH, "tuner.trials=3") == 0, capsys.readouterr().err
    assert sorted(trials(lab)) == [0, 1, 2]
    assert [len(record.tasks) for record in lab.records()] == [2, 1]
    assert [len(pids(run_of(lab, number))) for number in range(3)] == [1, 1, 1]


def test_a_fair_study_goes_on_where_its_controller_was_killed(lab: Lab, capsys):
    fair = ["protocol=fair", "method=lora", "protocol.values=[3e-3,1e-2,3e-2]", "protocol.pruner=none",
            f"protocol.tuning_seeds=[{UNTIL}]", "protocol.seeds=[1,2]"]  # fmt: skip
    lab.roots.runs.mkdir()
    tunes = lab.start(*fair)
    until(lambda: lab.study.exists() and train(lab, 3))
    tunes.kill()
    lab.go()
    confirms = lab.start(*fair)
    until(lambda: [record for record in submissions.read(lab.study) if record.job])
    confirms.kill()
    assert lab.run(*fair) == 0, capsys.readouterr().err
    assert "best: all: train.lr=0.01" in capsys.readouterr().out
    assert [len(record.tasks) for record in lab.records()] == [2, 3], "two fresh seeds, three trials, each sent once"
    confirmed = [row for row in lines.read(lab.study / "manifest.jsonl") if row["why"] == "confirm"]
    assert [(row["labels"]["train.lr"], row["labels"]["seed"]) for row in confirmed] == [(0.01, 1), (0.01, 2)]
    folders = [run_of(lab, number) for number in range(3)] + [folder_of(lab.roots, row["id"]) for row in confirmed]
    assert all(folder.result.exists() for folder in folders)
    assert [len(pids(folder)) for folder in folders] == [1] * 5
