"""A search from the command line to its last trial: the total is exact, a trial is a run, nothing is done twice."""

import json

import pytest

import fake_execute
from ablora.cli import main
from ablora.config import ask
from ablora.spec import RunSpec, run_id
from ablora.store import atomic, lines
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import StudyFolder
from ablora.tree import build
from ablora.tune.frozen import spec_of
from ablora.tune.storage import Slot
from searches import QUICK, SPACE, results, starts, trials_of

pytestmark = pytest.mark.usefixtures("fake")


def states(study: StudyFolder, arm: int = 0) -> list[str]:
    trials = trials_of(study).study(Slot(arm, 0)).get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    return [trial.state.name for trial in trials]


def test_every_arm_has_exactly_its_trials_and_each_is_a_run(search, study, roots, capsys):
    assert search("tuner.trials=5", "method=lora,pissa") == 0
    for arm in (0, 1):
        assert states(study, arm) == ["COMPLETE"] * 5
    assert len(results(study)) == 10
    assert starts(roots) == [1] * 10
    assert capsys.readouterr().out.count("best of 5 complete") == 2
    rows = list(lines.read(study.manifest))
    assert len(rows) == 10
    for row in rows:
        assert folder_of(roots, row["id"]).read_spec().train.lr == row["labels"]["train.lr"]
    for slot, told in results(study).items():
        spec = folder_of(roots, told["run"]).read_spec()
        assert told["values"] == [fake_execute.loss_of(spec.train.lr)]
        trial = trials_of(study).study(Slot.of(slot)).get_trials()[Slot.of(slot).number]
        assert trial.user_attrs["run"] == told["run"]
        assert trial.params == {"train.lr": spec.train.lr}


def test_the_same_command_does_nothing_again_and_more_trials_are_added(search, study, roots):
    assert search("tuner.trials=3") == 0
    before = results(study)
    assert search("tuner.trials=3") == 0
    assert results(study) == before
    assert search("tuner.trials=5") == 0
    assert len(results(study)) == 5
    assert {slot: results(study)[slot] for slot in before} == before
    assert starts(roots) == [1] * 5


def test_trials_cannot_be_taken_and_another_question_needs_another_name(search, study, capsys):
    assert search("tuner.trials=3") == 0
    assert search("tuner.trials=2") == 2
    assert "trials can be added, not taken" in capsys.readouterr().err
    assert search("tuner.trials=3", "method=pissa") == 2
    assert "this study's arms is another" in capsys.readouterr().err
    assert main(["run", "-m", "tuner=optuna", *QUICK, "train.lr=tag(log,interval(1e-4,1e-3))"]) == 2
    assert "space" in capsys.readouterr().err


def test_a_search_does_better_than_its_first_trials(search, study):
    """Of a loss with one minimum the last ten proposals of a sampler that learns lie nearer than its first five."""
    assert search("tuner.trials=25", "tuner.at_once=1") == 0
    values = [told["values"][0] for told in results(study).values()]
    assert min(values[5:]) < min(values[:5])
    assert sum(values[15:]) / 10 < sum(values[:5]) / 5


def test_no_two_trials_get_the_same_proposal_from_their_seeds(search, study):
    assert search("tuner.trials=12", "tuner.sampler=random", "tuner.at_once=null", "pack=12") == 0
    rates = [row["labels"]["train.lr"] for row in lines.read(study.manifest)]
    assert len(set(rates)) == 12


def test_a_search_is_repeatable(search, study, roots, monkeypatch, tmp_path):
    assert search("tuner.trials=6", "tuner.at_once=2") == 0
    first = [row["id"] for row in lines.read(study.manifest)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert search("tuner.trials=6", "tuner.at_once=2") == 0
    assert [row["id"] for row in lines.read(elsewhere / "studies/s/manifest.jsonl")] == first


def test_a_run_that_diverges_is_an_answer_and_ends_nothing(search, study, capsys):
    assert search("tuner.trials=3", f"seed={fake_execute.DIVERGES}") == 0
    assert states(study) == ["FAIL"] * 3
    assert {told["state"] for told in results(study).values()} == {"diverged"}
    assert "3 trials (3 diverged)" in capsys.readouterr().out


def test_a_failed_trial_waits_to_be_looked_at_and_the_others_go_on(search, study, roots, capsys, monkeypatch):
    real = fake_execute._go_wrong
    monkeypatch.setattr(fake_execute, "_go_wrong", lambda folder, seed, begun: 1 / 0 if _is_first(folder) else False)
    assert search("tuner.trials=4", "pack=1") == 3
    assert states(study).count("COMPLETE") == 3
    assert states(study).count("WAITING") == 1
    said = capsys.readouterr().err
    assert "failed: bug: division by zero" in said
    assert "ablora retry s" in said
    assert search("tuner.trials=4", "pack=1") == 3, "what failed is not tried again unasked"
    monkeypatch.setattr(fake_execute, "_go_wrong", real)
    before = {row["id"] for row in lines.read(study.manifest)}
    assert main(["retry", "s", "--only", "bug"]) == 0
    assert states(study) == ["COMPLETE"] * 4
    assert {row["id"] for row in lines.read(study.manifest)} == before, "the same trial, with the same parameters"


def _is_first(folder: RunFolder) -> bool:
    return len(list(folder.path.parent.iterdir())) == 1


ASHA = ("tuner.pruner=asha", "tuner.reduction=2", "tuner.grace=0", "tuner.at_once=null", "pack=12")
"""From the first step: the stand-in makes three, whatever train.max_steps is."""


def test_pruned_runs_have_no_result_and_stay_pruned(search, study, roots, capsys):
    assert search("tuner.trials=12", *ASHA) == 0
    told = results(study)
    pruned = [one["run"] for one in told.values() if one["state"] == "pruned"]
    assert 1 <= len(pruned) < 12
    assert states(study).count("PRUNED") == len(pruned)
    assert not any(folder_of(roots, run).result.exists() for run in pruned)
    best = min(fake_execute.loss_of(row["labels"]["train.lr"]) for row in lines.read(study.manifest))
    assert [best] in [one["values"] for one in told.values()], "the best one is not given up"
    assert search("tuner.trials=12", *ASHA) == 0
    assert starts(roots) == [1] * 12
    capsys.readouterr()
    assert main(["status", "s"]) == 0
    assert f"{len(pruned)} pruned" in capsys.readouterr().out.splitlines()[-1]
    assert main(["watch", "s"]) == 0
    said = capsys.readouterr().out
    assert sum(" pruned " in line for line in said.splitlines()[:-1]) >= len(pruned)
    assert "next: ablora collect s" in said


def test_a_grid_that_wants_a_pruned_run_carries_it_on(search, study, roots):
    assert search("tuner.trials=12", *ASHA) == 0
    one = next(told["run"] for told in results(study).values() if told["state"] == "pruned")
    rate = folder_of(roots, one).read_spec().train.lr
    quick = [argument for argument in QUICK if not argument.startswith("study=")]
    assert main(["run", "-m", *quick, f"train.lr={rate!r},5e-5", "study=grid"]) == 0
    assert folder_of(roots, one).result.exists()
    assert len((folder_of(roots, one).path / "executed.txt").read_text().splitlines()) == 2
    steps = [row["step"] for row in lines.read(folder_of(roots, one).metrics) if row["kind"] == "train"]
    assert steps == [1, 2, 3]


def test_a_finished_run_is_told_with_its_evaluations_and_not_run(study, roots, sweep):
    quick = [argument for argument in QUICK if not argument.startswith("study=")]
    assert main(["run", "-m", *quick, "study=grid", "train.lr=1e-4,1e-3,1e-2"]) == 0
    sweep("search: {train.lr: [1.0e-4, 1.0e-3, 1.0e-2]}")
    grid = ["+sweeps=own", "tuner=optuna", "tuner.trials=null", "tuner.sampler=grid", "tuner.pruner=median"]
    assert main(["run", "-m", *QUICK, *grid]) == 0
    assert states(study) == ["COMPLETE"] * 3
    assert starts(roots) == [1] * 3
    for trial in trials_of(study).study(Slot(0, 0)).get_trials():
        assert trial.intermediate_values == {
            step: fake_execute.loss_of(trial.params["train.lr"]) + 1 / step for step in (1, 2)
        }


def test_trials_of_one_specification_are_one_run_and_all_are_told(study, roots, sweep):
    sweep("search: {train.lr: [1.0e-3, 1.0e-2], train.checkpoint_every: [5, 10]}")  # the second changes no run
    grid = ["+sweeps=own", "tuner=optuna", "tuner.trials=null", "tuner.sampler=grid"]
    assert main(["run", "-m", *QUICK, *grid]) == 0
    assert states(study) == ["COMPLETE"] * 4
    assert starts(roots) == [1, 1]


def test_a_dead_workers_trial_goes_on_with_its_parameters(search, study, roots, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ablora.dispatch.job.execute", stop)
        assert search("tuner.trials=3", "pack=1") == 130
    assert states(study) == ["RUNNING", "WAITING", "WAITING"]
    proposed = atomic.read_json(study.trials / "trial-00-0000" / "trial.json")
    assert search("tuner.trials=3", "pack=1") == 0
    assert states(study) == ["COMPLETE"] * 3
    assert atomic.read_json(study.trials / "trial-00-0000" / "trial.json") == proposed
    assert results(study)["trial-00-0000"]["run"] == proposed["run"]


def test_one_that_was_told_and_not_written_down_is_written_down(search, study, roots):
    assert search("tuner.trials=2") == 0
    before = results(study)
    (study.trials / "trial-00-0001" / "result.json").unlink()
    assert search("tuner.trials=2") == 0
    after = results(study)
    assert after["trial-00-0001"]["values"] == before["trial-00-0001"]["values"]
    assert starts(roots) == [1, 1]


def test_two_objectives_make_a_front(search, study, capsys):
    both = "tuner.metrics=[validation_answer_loss_nats,answer_loss_nats]"
    assert search("tuner.trials=4", both) == 2
    assert "tuner.directions" in capsys.readouterr().err
    assert search("tuner.trials=4", both, "tuner.directions=[minimize,minimize]") == 0
    assert "on the Pareto front of 4 complete" in capsys.readouterr().out
    assert all(len(told["values"]) == 2 for told in results(study).values())


def test_a_metric_that_no_run_has_is_the_users_mistake(search, study, capsys):
    assert search("tuner.trials=2", "tuner.metrics=[accuracy]", "tuner.directions=[maximize]") == 3
    said = capsys.readouterr().err
    assert "bad_input: tuner.metrics='accuracy'" in said
    assert "answer_loss_nats" in said


def test_tables_need_neither_optuna_nor_its_storage(search, study, monkeypatch):
    assert search("tuner.trials=3") == 0
    monkeypatch.setattr("ablora.tune.storage._open", lambda *_: 1 / 0)
    assert main(["collect", "s"]) == 0
    study.manifest.write_text("")
    assert main(["watch", "s"]) == 0
    assert len(list(lines.read(study.manifest))) == 3, "made anew from the trials' folders"


def test_a_failed_trial_of_a_metric_that_is_not_there_waits(search, study):
    assert search("tuner.trials=1", "tuner.metrics=[accuracy]") == 3
    assert states(study) == ["WAITING"]


def test_a_torn_last_line_of_the_journal_is_cut_off(search, study):
    assert search("tuner.trials=2") == 0
    with study.journal.open("a") as file:
        file.write('{"op_code": 5, "worker')
    assert search("tuner.trials=3") == 0
    assert states(study) == ["COMPLETE"] * 3
    for line in study.journal.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random"])
def test_every_sampler_searches_a_conditional_space(study, sweep, sampler):
    sweep("""search:
  method: [lora, goat]
  train.lr: {low: 1.0e-4, high: 1.0e-1, log: true}
  method.scaling.alpha: {low: 1, high: 64, log: true, int: true, when: {method: lora}}
  method.scaling.eta: {low: 0.1, high: 10, log: true, when: {method: goat}}""")
    arguments = ["+sweeps=own", "tuner=optuna", "tuner.trials=12", "tuner.at_once=2", f"tuner.sampler={sampler}"]
    assert main(["run", "-m", *QUICK, *arguments]) == 0
    rows = list(lines.read(study.manifest))
    assert {row["labels"]["method"] for row in rows} == {"lora", "goat"}
    for row in rows:
        own = {"lora": "method.scaling.alpha", "goat": "method.scaling.eta"}[row["labels"]["method"]]
        assert set(row["labels"]) == {"method", "train.lr", own}


def test_a_trials_run_is_the_one_that_hydra_composes(roots):
    """Every place that refers to a searched key follows it: the id is that of the cell with the value written out."""
    keys = ["rank=interval(2,16)", "train.lr=tag(log,interval(1e-4,1e-2))", "train.max_steps=interval(20,40)"]
    found = ask(["tuner=optuna", "method=lora,goat,riemannian_lora", "train.warmup_steps=2", *keys], True)
    assert found.search is not None
    values = {"rank": 8, "train.lr": 0.0005, "train.max_steps": 30}
    plain = [f"{key}={value}" for key, value in values.items()] + ["train.warmup_steps=2"]
    for arm in found.search.arms:
        (cell,) = ask([f"method={arm.labels['method']}", *plain], False).cells
        assert run_id(spec_of(arm, values)) == run_id(build(cell.tree, RunSpec))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tuner=optuna"], "a search space"),
        (["train.lr=interval(1e-4,1e-2)"], "a search has a tuner: tuner=optuna"),
        (["tuner=optuna", "train.lrr=interval(1e-4,1e-2)"], "did you mean train.lr"),
        (["tuner=optuna", "method.scaling.eta=tag(log,interval(1e-4,1e-2))", "method=lora,goat"], "when"),
        (["tuner=optuna", "train.lr=interval(1e-2,1e-4)"], "low end is below"),
        (["tuner=optuna", *SPACE, "tuner.pruner=asha"], "eval.every"),
        (["tuner=optuna", *SPACE, "tuner.storage=nodb:///x"], "a database that answers"),
        (["tuner=optuna", *SPACE, "budget.params=20k", "rank=interval(2,8)"], "budget"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(roots, capsys, arguments, says):
    assert main(["run", "-m", "tracker=off", "study=s", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not roots.runs.exists() or not list(roots.runs.iterdir())
