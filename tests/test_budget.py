"""Equal budgets: the solved rank, the ids of the runs, what is refused, what a plan says."""

import pytest

from ablora.cli import main
from ablora.config import ask, entry, hand_over
from ablora.config.budget import amount
from ablora.method.plan import count
from ablora.models.base import skeleton
from ablora.spec import BadInput, RunSpec, run_id
from ablora.train.memory import predict
from ablora.tree import build
from presets import method, names


def spec(*arguments: str) -> RunSpec:
    (cell,) = ask(arguments, multirun=False).cells
    return build(cell.tree, RunSpec)


def test_every_preset_gets_the_rank_of_the_nearest_count():
    """By brute force over every rank, ties to the smaller count."""
    at = spec()
    folder, targets, target = at.model.folder, at.adapter.targets, 520_192
    question = ask([f"method={','.join(names())}", f"budget.params={target}", "budget.tolerance=0.5"], multirun=True)
    assert len(question.cells) == len(names())
    for cell in question.cells:
        chosen, found = method(cell.labels["method"]), {}
        for rank in range(1, 129):
            try:
                found[rank] = count(chosen, folder, targets, rank)
            except BadInput:  # a rank that the method cannot have
                continue
        best = min(found, key=lambda r: (abs(found[r] - target), found[r]))
        assert (cell.tree["rank"], cell.budget) == (best, target), cell.labels
        assert best % chosen.structure.experts == 0


def test_a_budget_like_lora_is_loras_factors_and_its_ids_are_those_of_the_rank():
    model = skeleton(spec().model.folder)
    sides = sum(m.in_features + m.out_features for n, m in model.named_modules() if n.endswith("_proj"))
    (cell,) = ask(["budget.like=lora:8"], multirun=False).cells
    assert (cell.budget, cell.tree["rank"], "budget" in cell.tree) == (8 * sides, 8, False)
    assert run_id(spec("method=lora_fa", "budget.like=lora:8")) == run_id(spec("method=lora_fa", "rank=15"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["budget.params=200k", "rank=4"], "rank=4"),
        (["budget.params=200k", "rank=8"], "rank=8"),
        (["budget.params=200k", "budget.like=lora:8"], "budget.like='lora:8'"),
        (["budget.params=many"], "budget.params='many'"),
        (["budget.like=lora"], "PRESET:RANK"),
        (["budget.like=lor:8"], "did you mean method=lora"),
        (["budget.like=goat:9"], "multiple"),
        (["budget.params=20000"], "14,592 at rank 1 and 29,184 at rank 2"),
        (["budget.memory=lots"], "budget.memory='lots'"),
        (["budget.memory=2GB"], "MiB or GiB"),
        (["budget.memory=80MiB"], "takes at rank 1"),
        (["budget.memory=1GiB", "budget.step=lora:8"], "null where budget.memory is given"),
        (["budget.step=lora"], "PRESET:RANK"),
        (["budget.step=goat:9"], "multiple"),
        (["method=goat", "budget.params=120k"], "169,984 at rank 8 and none less"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(BadInput) as refused:
        ask(arguments, multirun=False)
    assert said in str(refused.value)


def test_hydras_own_application_solves_it_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(entry, "_answer", asked.append)
    monkeypatch.setattr("sys.argv", ["ablora"])
    assert hand_over(["hydra.job.name=x", "method=lora_fa", "budget.like=lora:8"]) == 0
    (cell,) = asked[0].cells
    assert run_id(build(cell.tree, RunSpec)) == run_id(spec("method=lora_fa", "rank=15"))


def test_amounts():
    assert [amount(text) for text in (7, "200k", "1.5M", "0.57k", 2e5)] == [7, 200_000, 1_500_000, 570, 200_000]


def test_a_plan_says_target_count_and_rank(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "-m", "method=lora,lora_fa", "budget.params=200k"]) == 0
    assert "lora             rank 14: 204,288 (+2.1% of the budget 200,000)" in capsys.readouterr().out


def test_where_the_data_decide_the_budget_is_met_at_equal_ranks_and_the_bound_said(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "-m", "method=eva,lora", "budget.params=112k"]) == 0
    out = capsys.readouterr().out
    equal, said = "(+4.2% of the budget 112,000)", "at equal ranks, at most 147,456"
    assert f"lora             rank 8: 116,736 {equal}" in out
    assert f"eva              rank 8: 116,736 {said} {equal}" in out
    assert "result.json has what that came to" in out
    assert main(["plan", "method=eva", "method.init.rho=1", "rank=8"]) == 0
    assert "at most" not in capsys.readouterr().out


def test_a_budget_of_memory_is_the_largest_rank_within_it():
    limit = "800MiB"
    (cell,) = ask(["method=goat", f"budget.memory={limit}"], multirun=False).cells
    rank, peaks = cell.tree["rank"], {}
    for near in (rank, rank + 8):
        (found,) = ask(["method=goat", f"rank={near}"], multirun=False).cells
        peaks[near] = predict([build(found.tree, RunSpec)]).peak_bytes
    assert rank % 8 == 0
    assert peaks[rank] <= 800 * 2**20 < peaks[rank + 8]
    assert f"budget.memory {limit}" in str(cell.budget)


def test_a_budget_of_a_step_is_met_by_its_own_preset_at_its_rank():
    (own,) = ask(["budget.step=lora:8"], multirun=False).cells
    (dora,) = ask(["method=dora", "budget.step=lora:8"], multirun=False).cells
    assert own.tree["rank"] == 8
    assert dora.tree["rank"] < 8
    assert "multiply-adds" in str(dora.budget)
