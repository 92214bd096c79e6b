"""What the result table says of its evidence: new items, smallest p, what is detected, and what could not be used."""

import math

import pandas as pd
import pytest
from synthetic import Made, id_of, stale, write_study
from test_result_table import result_of, result_of_existing, seeds

from ablora.store import lines
from ablora.store.roots import Roots
from ablora_analysis import stats, table
from ablora_analysis.figures import arms, result_table, result_text, robustness
from ablora_analysis.figures.main import chosen_items
from ablora_analysis.figures.result_table import ResultTable


def csv(result: ResultTable, metric: str = "answer_loss_nats") -> pd.DataFrame:
    found = result_text.frame(result)
    return found[found["metric"] == metric].set_index("arm")


def test_the_csv_has_the_interval_for_new_items_and_the_sheet_says_so(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora"), *seeds("milora")])
    row = csv(result).loc["lora"]
    items = table.items(roots, result.ids, "answer_loss")
    score = items.assign(value=items["loss_nats"], weight=items["answer_tokens"].astype(float))
    runs = {id_of(m): m for m in (*seeds("lora"), *seeds("milora"))}
    own = {m: score[[runs[i].method == m for i in score["id"]]] for m in ("lora", "milora")}
    one, best = (own[m].assign(seed=[runs[i].seed for i in own[m]["id"]]) for m in ("lora", "milora"))
    oracle = stats.new_items(one, best)
    assert (row["difference_new_items_low"], row["difference_new_items_high"]) == pytest.approx(
        (oracle.low, oracle.high)
    )
    assert row["difference_new_items_low"] <= row["difference_low"] < row["difference_high"]
    assert row["sd_of_differences"] == pytest.approx(pd.Series(stats.per_seed(one, best)).std())
    assert math.isnan(csv(result).loc["milora", "difference_new_items_low"])
    assert any("the CSV has those for new items" in note for note in result_text.sheet(result).notes)


def test_the_foot_has_the_smallest_p_and_the_detectable_difference(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora"), *seeds("milora"), *seeds("pissa")])
    (note,) = [note for note in result.notes if note.startswith("Detectable")]
    loss = result.panels[0]
    assert f"answer_loss_nats {loss.detectable:.2g}" in note
    assert note.endswith("least permutation p: 0.12.")
    row = csv(result).loc["lora"]
    assert (row["smallest_p"], row["comparisons"]) == (0.125, 2)
    sds = [c.to_best.sd for c in loss.cells if c.to_best]
    sd = math.sqrt(sum(x**2 for x in sds) / 2)
    assert loss.detectable == pytest.approx(stats.minimum_detectable_difference(sd, 4, 0.025))
    assert math.isnan(row["p_permutation"])
    assert math.isnan(row["difference_bootstrap_low"])


@pytest.mark.parametrize("num", [1, 2])
def test_below_three_seeds_no_power_is_claimed(roots: Roots, num: int) -> None:
    result = result_of(roots, [*seeds("lora", num), *seeds("milora", num)])
    assert not any("Detectable" in note for note in result.notes)
    assert csv(result)[["detectable_difference", "smallest_p", "difference_new_items_low"]].isna().all(axis=None)


def test_ten_seeds_have_sign_flips_and_a_bootstrap(roots: Roots) -> None:
    row = csv(result_of(roots, [*seeds("lora", 10), *seeds("milora", 10)])).loc["lora"]
    assert row["p_permutation"] == stats.smallest_p(10) == row["smallest_p"]
    assert 0 < row["difference_bootstrap_low"] < row["difference_to_best"] < row["difference_bootstrap_high"]


def test_one_arm_on_other_items_is_marked_and_the_others_are_compared(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora"), *seeds("milora"), *seeds("pissa", num_items=10)])
    loss = result.panels[0]
    assert [(c.arm, c.not_ranked) for c in loss.cells] == [("lora", ""), ("milora", ""), ("pissa", "items")]
    assert not loss.refused
    assert loss.cells[0].to_best is not None
    assert math.isfinite(loss.cells[2].score.mean)
    assert result_table.number(loss.cells[2]).startswith(f"{loss.cells[2].score.mean:.3f}¶")
    assert any(note.startswith("¶ evaluated on other items") for note in result.notes)


def test_one_arm_with_other_weights_is_marked_and_two_such_are_not_compared(roots: Roots) -> None:
    for runs in ([*seeds("lora"), *seeds("milora"), *seeds("pissa")], [*seeds("lora"), *seeds("pissa")]):
        write_study(roots, "s", runs)
        for made in seeds("pissa"):
            path = roots.runs / id_of(made) / "evals" / "answer_loss.jsonl"
            changed = [r | {"answer_tokens": r["answer_tokens"] + 1} for r in lines.read(path)]
            lines.write(path, changed)
        result = result_of_existing(roots)
        loss, match = result.panels[0], result.panels[-1]
        assert all(math.isfinite(cell.score.mean) for cell in loss.cells)
        assert any(cell.best for cell in match.cells), "what can be compared is"
        if len(runs) == 12:
            assert [cell.not_ranked for cell in loss.cells] == ["", "", "items"]
        else:
            assert "the same weight (answer tokens)" in loss.refused
            assert any(note.startswith("Not compared (answer_loss_nats, arithmetic)") for note in result.notes)


LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def robust(losses: dict[float, list[float]], **diverged: int) -> robustness.Robustness:
    """Of one arm; `diverged` has the seed and the place of the rate where it did."""
    rows = [
        {"id": f"{lr}-{s}", "method": "lora", "setting": "", "dataset": "d", "arm": "lora", "why": "grid", "lr": lr,
         "seed": s, "fate": "used", "validation_answer_loss_nats": loss}
        for lr, found in losses.items() for s, loss in enumerate(found)
    ]  # fmt: skip
    prepared = pd.DataFrame(rows)
    if diverged:
        bad = (prepared["seed"] == diverged["seed"]) & (prepared["lr"] == LRS[diverged["at"]])
        prepared.loc[bad, "fate"] = "diverged"
    (choice,) = arms.choose(prepared)
    return robustness.of(prepared, choice)


def test_the_range_of_rates_within_a_point_of_the_best() -> None:
    curve = dict(zip(LRS, ([0.92], [0.909], [0.90], [0.91], [0.95])))
    found = robust(curve)
    assert (found.low, found.high, found.metric) == (3e-4, 3e-3, "validation_answer_loss_nats")
    assert found.decades == pytest.approx(1.0)
    dip = dict(zip(LRS, ([0.90], [0.95], [0.90], [0.93], [0.90])))
    assert robust(dip)[1:] == (1e-4, 1e-4), "a range has no gap"
    assert math.isnan(robust({1e-3: [0.9]}).low)
    two = {lr: [v[0], v[0] + 0.02] for lr, v in curve.items()}
    assert robust(two)[1:] == (3e-4, 3e-3)
    assert robust(two, seed=1, at=3)[1:] == (3e-4, 1e-3), "a rate where a seed diverged is not near the best"


def test_seeds_at_one_rate_alone_do_not_move_the_range() -> None:
    curve = {lr: [v] for lr, v in zip(LRS, (0.92, 0.909, 0.90, 0.91, 0.95))}
    curve[1e-3] += [1.4, 1.5]  # fresh seeds that confirm, and happen to be bad
    assert robust(curve)[1:] == (3e-4, 3e-3)


def test_robustness_is_in_the_csv(roots: Roots) -> None:
    runs = [Made(method=m, lr=lr, seed=s) for m in ("lora", "milora") for lr in (5e-4, 1e-3, 2e-3) for s in range(3)]
    write_study(roots, "s", runs)
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    found = csv(result_table.points(prepared, choices, chosen_items(roots, choices, ["answer_loss_nats"])))
    own = found.loc["lora"]
    assert own["tuned_on"] == "answer_loss_nats"
    assert own["lr_within_a_point_low"] <= own["lr"] <= own["lr_within_a_point_high"]
    assert own["lr_within_a_point_decades"] >= 0
    assert own["diverged"] == "0/9"
    assert own["sd_over_seeds"] > 0
