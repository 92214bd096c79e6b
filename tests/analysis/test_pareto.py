import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic import Made, stale, write_study

from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms, pareto
from ablora_analysis.figures.front import front_of
from ablora_analysis.figures.pareto import FORGOT, LEARNT, Way
from ablora_analysis.figures.study import chosen_items


def ways_of(roots: Roots, runs: list[Made]) -> list[Way]:
    write_study(roots, "s", runs)
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    items = chosen_items(roots, choices, [FORGOT, LEARNT])
    records = table.curves(roots, [run for c in choices for run in c.ids], [FORGOT, LEARNT])
    return pareto.points(prepared, choices, items, records)


def runs(*methods: str, num: int = 3, **fields: object) -> list[Made]:
    return [Made(method=m, seed=s, forgets=True, **fields) for m in methods for s in range(num)]  # type: ignore[arg-type]


def test_front_by_hand() -> None:
    means = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (3.0, 1.0), "behind": (2.5, 2.5), "same": (2.0, 2.0)}
    assert front_of(means) == ["a", "b", "same", "c"]
    assert front_of({"less": (1.0, 1.0), "equal in one": (1.0, 2.0)}) == ["less"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_arm_is_on_the_front_or_beaten_by_one_that_is(pairs: list[tuple[int, int]]) -> None:
    means = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(pairs)}
    front = front_of(means)
    assert front
    for name, (x, y) in means.items():
        beaten = [f for f in front if means[f][0] <= x and means[f][1] <= y and means[f] != (x, y)]
        assert bool(beaten) != (name in front)


def test_ways_lead_from_the_base_to_the_runs_results(roots: Roots) -> None:
    lora, milora = ways_of(roots, runs("lora", "milora"))
    assert (lora.steps, lora.forgot[0]) == ((0, 10, 20, 30, 40), 0.0)
    assert list(lora.forgot) == sorted(lora.forgot)
    assert (lora.forgot[-1], lora.learnt[-1]) == pytest.approx((lora.final_forgot.mean, lora.final_learnt.mean))
    assert lora.final_forgot.mean == pytest.approx(sum(x for x, _ in lora.seeds) / 3)
    assert (milora.front, lora.front, len(lora.ids), lora.final_forgot.basis) == (True, False, 3, "seeds")


def test_dominated_is_tested_in_both_measures(roots: Roots) -> None:
    found = {way.arm: way for way in ways_of(roots, runs("lora", "milora", "pissa", num=4))}
    assert found["milora"].dominated_by == ()
    assert found["lora"].dominated_by == ("milora",)  # it learns less and forgets more, in every seed
    assert not found["pissa"].front


def test_one_that_only_forgets_more_is_not_called_dominated(roots: Roots) -> None:
    goat, _ = ways_of(roots, [*runs("goat", num=4, lr=5e-4), *runs("milora", num=4)])
    assert not goat.front
    assert goat.dominated_by == ()  # its answer loss is not shown to be worse


@pytest.mark.parametrize(("num", "basis"), [(1, "items"), (2, "range")])
def test_below_three_seeds_nothing_is_dominated(roots: Roots, num: int, basis: str) -> None:
    found = ways_of(roots, runs("lora", "milora", num=num))
    assert [way.dominated_by for way in found] == [(), ()]
    assert {way.final_forgot.basis for way in found} == {basis}
    assert "No test below three seeds." in pareto.notes(found)


def test_what_is_not_ranked_is_not_on_the_front(roots: Roots) -> None:
    lost = [Made(method="milora", seed=3, state="diverged")]
    found = {way.arm: way for way in ways_of(roots, [*runs("lora", num=4), *runs("milora"), *lost])}
    assert (found["milora"].not_ranked, found["milora"].front, found["lora"].front) == ("diverged", False, True)
    assert any("milora (a seed diverged)" in note for note in pareto.notes(list(found.values())))


def test_without_forgetting_there_is_nothing_to_draw(roots: Roots) -> None:
    assert ways_of(roots, [Made(seed=s) for s in range(3)]) == []


def test_without_items_arms_are_paired_on_seeds(roots: Roots) -> None:
    made = runs("lora", "milora", num=4)
    ways_of(roots, made)
    for folder in roots.runs.iterdir():
        folder_of(roots, folder.name).items("forgetting").unlink()
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    items = chosen_items(roots, choices, [FORGOT, LEARNT])
    assert set(items) == {LEARNT}
    found = pareto.points(prepared, choices, items, table.curves(roots, [], [FORGOT]))
    assert [way.steps for way in found] == [(), ()]
    assert found[0].dominated_by == ("milora",)


def test_the_base_stands_on_the_left_border_of_a_logarithmic_axis(roots: Roots) -> None:
    ways = ways_of(roots, [*runs("milora", num=1), *runs("pissa", num=1)])
    ax = Figure().add_subplot()
    pareto.draw(ax, ways)
    assert ax.get_xscale() == "log"
    left = ax.get_xlim()[0]
    assert 0 < left < min(x for way in ways for x in way.forgot[1:])
    starts = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 5]
    assert starts == [left, left]
    near = Figure().add_subplot()
    pareto.draw(near, ways[:1])
    assert near.get_xscale() == "linear"
    assert not math.isinf(near.get_ylim()[1])
