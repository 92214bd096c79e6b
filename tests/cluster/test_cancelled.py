"""`ablora cancel` on a real SLURM: what waits and runs ends, whoever watches, and goes on only when asked for."""

from ablora.cli import main
from ablora.dispatch import submissions
from ablora.store import atomic
from ablora.store.run_folder import folder_of
from fake_execute import UNTIL
from slurm_lab import Lab, until


def test_a_study_under_the_eyes_of_its_controller(lab: Lab, capsys):
    seeds = f"seed={UNTIL},0"
    watches = lab.start(seeds, "cluster.array_parallelism=1")
    until(lambda: lab.trains(UNTIL))
    assert main(["cancel", "s"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "cancelled 1 task that ran and 1 task that waited"
    assert said[1] == "when they have ended, ablora retry s --only cancelled goes on with them"
    assert watches.wait(timeout=600) == 3
    assert [lab.folder(seed).read_failure()["class"] for seed in (UNTIL, 0)] == ["cancelled", "cancelled"]
    until(lambda: not lab.queued())
    assert main(["cancel", "s"]) == 0
    assert capsys.readouterr().out == "SLURM has no task of s\n"
    lab.go()
    assert main(["resume", "s"]) == 3, "not without being asked for"
    assert len(submissions.read(lab.study)) == 1
    assert main(["retry", "s", "--only", "cancelled"]) == 0
    assert (lab.starts(UNTIL), lab.starts(0)) == (2, 1)
    assert lab.steps(UNTIL) == list(range(1, len(lab.steps(UNTIL)) + 1))


def test_runs_that_wait_for_their_preparation_are_planned(lab: Lab, capsys):
    waits = ["cluster.options=['begin=now+1hour']", "cluster.prepare=true", "cluster.wait=false"]
    plain = ["seed=0,1", "eval.tasks.generation=null", "eval.tasks.forgetting=null"]
    assert lab.run(*plain, *waits) == 0
    assert main(["cancel", "s"]) == 0
    assert "cancelled 3 tasks that waited\n" in capsys.readouterr().out, "two runs and what prepares them"
    until(lambda: not lab.queued())
    until(lambda: [lab.standing(seed).state for seed in (0, 1)] == ["planned", "planned"])
    assert lab.run(*plain, "cluster.prepare=true") == 0
    assert [lab.starts(seed) for seed in (0, 1)] == [1, 1]


def test_a_search_keeps_its_trials(lab: Lab, capsys):
    lab.roots.runs.mkdir()
    search = ["tuner=optuna", "tuner.trials=2", "train.lr=tag(log,interval(1e-4,3e-2))", f"seed={UNTIL}"]
    assert lab.run(*search, "cluster.wait=false", "cluster.poll_s=600") == 0
    files = lab.study / "search" / "trials"
    until(lambda: len(list(files.glob("*/trial.json"))) == 2)
    asked = {path.parent.name: atomic.read_json(path) for path in files.glob("*/trial.json")}
    runs = [folder_of(lab.roots, record["run"]) for record in asked.values()]
    until(lambda: all(folder.metrics.exists() for folder in runs))
    capsys.readouterr()
    assert main(["cancel", "s"]) == 0
    assert capsys.readouterr().out.count("that ran") == 1
    until(lambda: not lab.queued())
    lab.go()
    assert main(["retry", "s", "--only", "cancelled"]) == 0, capsys.readouterr().err
    assert {path.parent.name: atomic.read_json(path) for path in files.glob("*/trial.json")} == asked
    until(lambda: all(folder.result.exists() for folder in runs))
