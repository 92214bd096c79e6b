"""A study that tunes on one seed and reports fresh ones: what its figures choose, and what they leave to tuning."""

import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import Made, stale, write_study

from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora_analysis import table
from ablora_analysis.figures import arms, lr_curves

LRS = (5e-4, 1e-3, 2e-3)
TUNED = [Made(method="lora", lr=lr, seed=0) for lr in LRS]


def prepared_of(roots: Roots, *confirming: Made) -> pd.DataFrame:
    write_study(roots, "s", [*TUNED, *confirming])
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    return prepared.assign(why=["tune"] * len(TUNED) + ["confirm"] * len(confirming))


def test_only_fresh_seeds_are_reported_at_the_rate_that_was_confirmed(roots: Roots) -> None:
    # 2e-3 is not the best rate of what is there: the study's own choice counts, not a second one.
    (choice,) = arms.choose(prepared_of(roots, *(Made(lr=2e-3, seed=seed) for seed in (1, 2, 3))))
    assert (choice.lr, choice.seeds, choice.lrs, choice.edge) == (2e-3, (1, 2, 3), LRS, True)


def test_rates_are_compared_on_the_tuning_seed_alone(roots: Roots) -> None:
    prepared = prepared_of(roots, *(Made(lr=1e-3, seed=seed) for seed in (1, 2, 3)))
    (curve,) = lr_curves.points(prepared, arms.choose(prepared), "answer_loss_nats")
    assert [len(values) for values in curve.values] == [1, 1, 1]
    assert curve.chosen == 1e-3


def test_a_fresh_seed_that_diverged_marks_the_arm(roots: Roots) -> None:
    prepared = prepared_of(roots, Made(lr=1e-3, seed=1), Made(lr=1e-3, seed=2, state="diverged"))
    (choice,) = arms.choose(prepared)
    assert (choice.seeds, len(choice.diverged), choice.diverged_share) == ((1,), 1, "1/5")


def test_an_arm_that_is_not_confirmed_shows_no_tuning_run(roots: Roots) -> None:
    prepared = prepared_of(roots, Made(method="pissa", lr=1e-3, seed=1))
    lora, pissa = arms.choose(prepared)
    assert (lora.ids, len(pissa.ids)) == ((), 1)
    assert "Not confirmed: lora (0/3 diverged)." in arms.notes(prepared, [lora, pissa])


def test_the_foot_says_what_tuned_and_what_is_shown(roots: Roots) -> None:
    prepared = prepared_of(roots, Made(lr=1e-3, seed=1))
    words = arms.notes(prepared, arms.choose(prepared))[0]
    assert words.endswith("of a tuning seed; shown are fresh seeds alone.")


def test_a_rate_that_was_pruned_was_tried(roots: Roots) -> None:
    """The greatest rate with a result is no edge where a greater one was given up; nor is it best itself."""
    made = [*TUNED[:2], Made(method="lora", lr=2e-3, seed=0, state="planned")]
    fresh = [Made(method="lora", lr=1e-3, seed=seed) for seed in (1, 2)]
    write_study(roots, "s", [*made, *fresh])
    path = roots.studies / "s" / "manifest.jsonl"
    whys = ["tune", "tune", "pruned", "confirm", "confirm"]
    lines.write(path, ({**cell, "why": why} for cell, why in zip(list(lines.read(path)), whys, strict=True)))
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    (choice,) = arms.choose(prepared)
    assert (choice.lr, choice.lrs, choice.edge, len(choice.ids)) == (1e-3, LRS, False, 2)
    assert "Left out: 1 pruned." in arms.notes(prepared, [choice])
    (curve,) = lr_curves.points(prepared, [choice], "answer_loss_nats")
    assert [len(values) for values in curve.values] == [1, 1, 0]


@pytest.mark.parametrize("why", ["grid", "tune"])
def test_until_the_first_is_confirmed_the_tuning_runs_are_shown(roots: Roots, why: str) -> None:
    (choice,) = arms.choose(prepared_of(roots).assign(why=why))
    assert (choice.lr, choice.seeds) == (1e-3, (0,))


def test_what_a_search_draws_beside_the_rate_makes_no_arms(roots: Roots) -> None:
    made = [Made(lr=lr, labels=(("method.scaling.alpha", 2**i),)) for i, lr in enumerate(LRS)]
    twin = Made(lr=LRS[0], steps=20, labels=(("method.scaling.alpha", 99),), state="diverged")
    write_study(roots, "s", [*made, twin])
    assert len({row["arm"] for row in _prepared(roots).to_dict("records")}) == 4
    atomic.write_json(
        roots.studies / "s" / "tune.json", {"space": [{"key": "train.lr"}, {"key": "method.scaling.alpha"}]}
    )
    prepared = _prepared(roots)
    (choice,) = arms.choose(prepared)
    assert (choice.arm, choice.lrs) == ("lora", LRS)
    notes = arms.notes(prepared, [choice])
    assert "A search: each trial has its own alpha as well." in notes
    assert f"Left out: 1 {arms.BEATEN}." in notes


def _prepared(roots: Roots) -> pd.DataFrame:
    rows, _ = table.read_rows(roots, "s", stale)
    return arms.prepare(table.cells(roots, "s", rows))


def test_many_rates_have_no_tick_each_and_no_line(roots: Roots) -> None:
    write_study(roots, "s", [Made(lr=1e-4 * 1.3**i) for i in range(lr_curves.MANY + 1)])
    prepared = _prepared(roots)
    (curve,) = lr_curves.points(prepared, arms.choose(prepared), "answer_loss_nats")
    ax = Figure().subplots()
    lr_curves.draw(ax, [curve])
    assert ax.lines[0].get_linestyle() == "None"
    assert len(ax.get_xticks()) < lr_curves.MANY
    assert "No line" in lr_curves.notes([curve])[0]
