import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from ablora.spec import BadInput
from ablora_analysis import stats

NUMBERS = st.floats(-10, 10).map(lambda x: round(x, 3))


def frame(per_seed: np.ndarray, weight: np.ndarray | None = None) -> pd.DataFrame:
    """[seeds, items] values as paired() reads them."""
    seeds, items = per_seed.shape
    out = pd.DataFrame({
        "seed": np.repeat(np.arange(seeds), items),
        "item": np.tile([f"i{k}" for k in range(items)], seeds),
        "value": per_seed.ravel(),
    })  # fmt: skip
    return out if weight is None else out.assign(weight=np.tile(weight, seeds))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_paired_is_the_paired_t_test_over_seed_means(data: st.DataObject) -> None:
    seeds, items = data.draw(st.integers(3, 8)), data.draw(st.integers(1, 5))
    values = np.array(data.draw(st.lists(NUMBERS, min_size=2 * seeds * items, max_size=2 * seeds * items)))
    a, b = values.reshape(2, seeds, items)
    differences = a.mean(1) - b.mean(1)
    if np.ptp(differences) < 1e-6:
        return
    found = stats.paired(frame(a), frame(b))
    oracle = scipy_stats.ttest_rel(a.mean(1), b.mean(1))
    interval = oracle.confidence_interval(0.95)
    assert found.basis == "seeds"
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(NUMBERS, min_size=12, max_size=12), st.permutations(range(6)), st.floats(-5, 5))
def test_paired_turns_round_shifts_and_forgets_the_order_of_rows(v: list[float], order: list[int], by: float) -> None:
    a, b = frame(np.array(v[:6]).reshape(3, 2)), frame(np.array(v[6:]).reshape(3, 2))
    one, back = stats.paired(a, b), stats.paired(b, a)
    assert one.difference == pytest.approx(-back.difference, abs=1e-9)
    assert (one.low, one.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    moved = stats.paired(a.assign(value=a["value"] + by), b.iloc[order])
    assert moved.difference == pytest.approx(one.difference + by, abs=1e-9)


def test_two_seeds_are_a_range_without_a_test() -> None:
    found = stats.paired(frame(np.array([[1.0], [3.0]])), frame(np.array([[0.5], [0.5]])))
    assert (found.low, found.high, found.basis) == (0.5, 2.5, "range")
    assert math.isnan(found.p)


def test_one_seed_is_an_interval_over_items_and_says_so() -> None:
    a, b = np.array([[1.0, 2.0, 4.0, 3.0]]), np.array([[0.5, 2.5, 3.0, 1.0]])
    found = stats.paired(frame(a), frame(b))
    interval = scipy_stats.ttest_1samp((a - b)[0], 0).confidence_interval(0.95)
    assert found.basis == "items"
    assert math.isnan(found.p)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_of_one_seed_has_the_interval_of_wilson(counts: tuple[int, int]) -> None:
    right, n = counts
    found = stats.over_items(frame(np.arange(n)[None] < right))
    oracle = scipy_stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert (found.mean, found.basis) == (pytest.approx(right / n), "share")
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize("value", [[0.0] * 32, [0.1] * 7, [0.3], [0.1, 0.2]])
def test_items_that_all_agree_or_are_too_few_give_no_interval(value: list[float]) -> None:
    found = stats.over_items(frame(np.array([value])))
    assert found.basis == "none"
    assert math.isnan(found.low)
    weight = np.arange(1.0, 1 + len(value))
    pair = stats.paired(frame(np.array([value]) * weight, weight), frame(np.zeros((1, len(value))), weight))
    assert (pair.basis == "none") == (len(value) < 3 or len(set(value)) == 1)
    assert math.isnan(pair.low)


def test_weights_make_a_ratio_of_sums() -> None:
    weight = np.array([1.0, 3.0])
    found = stats.paired(frame(np.array([[1.0, 9.0]]), weight), frame(np.array([[0.0, 6.0]]), weight))
    assert found.difference == pytest.approx((1 + 3) / 4)


def test_different_items_weights_seeds_and_repeats_are_refused() -> None:
    a = frame(np.zeros((3, 2)))
    with pytest.raises(BadInput, match="same items"):
        stats.paired(a, a.assign(item=a["item"].replace("i1", "i9")))
    with pytest.raises(BadInput, match="same items"):
        stats.paired(a, a[(a["seed"] > 0) | (a["item"] != "i1")])
    with pytest.raises(BadInput, match="weight"):
        stats.paired(a, a.assign(weight=2.0))
    with pytest.raises(BadInput, match="seed"):
        stats.paired(a, a.assign(seed=a["seed"] + 7))
    with pytest.raises(BadInput, match="once for seed"):
        stats.paired(a, pd.concat([a, a]))
    with pytest.raises(BadInput, match="finite"):
        stats.paired(a, a.assign(value=math.nan))
    with pytest.raises(BadInput, match=r"weight=-1\.0"):
        stats.paired(a, a.assign(weight=-1.0))
    with pytest.raises(BadInput, match="more than 0"):
        stats.paired(a.assign(weight=0.0), a.assign(weight=0.0))


def test_a_seed_that_one_lacks_is_left_out_and_named() -> None:
    a = frame(np.arange(4.0)[:, None])
    found = stats.paired(a, frame(np.zeros((3, 1))))
    assert (found.seeds, found.seeds_left_out, found.difference) == (3, (3,), 1.0)


def test_holm_by_hand() -> None:
    found = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert [found[k] for k in "abc"] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(found["d"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_keeps_the_order_and_lies_below_bonferroni(p: list[float]) -> None:
    found = stats.holm({str(i): x for i, x in enumerate(p)})
    adjusted = [found[str(i)] for i in range(len(p))]
    assert all(x <= y <= min(1.0, len(p) * x) + 1e-12 for x, y in zip(p, adjusted))
    order = np.argsort(p, kind="stable")
    assert bool((np.diff(np.array(adjusted)[order]) >= 0).all())


def test_tied_with_best_marks_what_cannot_be_told_apart() -> None:
    noise = np.array([[0.0, 0.0], [0.02, -0.02], [-0.02, 0.01], [0.01, 0.0]])
    scores = {"good": frame(1 + noise), "same": frame(1.001 + noise[::-1]), "bad": frame(2 + noise[[1, 0, 3, 2]])}
    found = stats.tied_with_best(scores, lower_is_better=True)
    assert (found.best, found.tied) == ("good", ("same",))
    assert stats.tied_with_best(scores, lower_is_better=False).best == "bad"


def test_without_a_test_nothing_is_tied() -> None:
    scores = {"a": frame(np.array([[1.0, 1.0]])), "b": frame(np.array([[1.0, 1.1]]))}
    assert stats.tied_with_best(scores, lower_is_better=True).tied == ()


def test_equal_runs_differ_by_nothing() -> None:
    a = frame(np.array([[0.1], [0.2], [0.4]]))
    found = stats.paired(a, a)
    assert (found.difference, found.p) == (0.0, 1.0)


def test_summary_of_one_two_and_three() -> None:
    assert stats.summary([2.0]).basis == "none"
    assert stats.summary([1.0, 3.0])[:3] == (2.0, 1.0, 3.0)
    three = stats.summary([1.0, 2.0, 3.0])
    assert three.high - three.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    with pytest.raises(BadInput):
        stats.summary([1.0, math.nan])


def test_detectable_difference_has_the_power_it_says() -> None:
    rng = np.random.default_rng(0)
    for seeds in (3, 5, 10):
        delta = stats.minimum_detectable_difference(0.5, seeds)
        draws = rng.normal(delta, 0.5, size=(20_000, seeds))
        assert (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert stats.minimum_detectable_difference(0.5, 1) == math.inf
    assert [stats.smallest_p(n) for n in (1, 3, 6)] == [1.0, 0.25, 0.03125]


def test_paired_covers_with_right_or_wrong_answers() -> None:
    """600 studies of 3 seeds, 25 items of unequal difficulty, answers 0 or 1: 95 % ± 2.7 % is three standard errors."""
    rng = np.random.default_rng(11)
    chance = np.stack([rng.uniform(0.1, 0.8, 25), rng.uniform(0.2, 0.9, 25)])
    true = chance[0].mean() - chance[1].mean()
    hits = 0
    for _ in range(600):
        a, b = (frame((rng.random((3, 25)) < p).astype(float)) for p in chance)
        found = stats.paired(a, b)
        hits += found.low <= true <= found.high
    assert 0.923 < hits / 600 < 0.977
