"""New seeds on new items: the crossed model against sums written out, simulated truths, and what it refuses."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from test_stats import frame

from ablora_analysis import stats
from ablora_analysis.stats.crossed import linearised

TABLES = st.tuples(st.integers(3, 6), st.integers(3, 7), st.integers(0, 2**32 - 1))


def table(seeds: int, items: int, world: int) -> np.ndarray:
    rng = np.random.default_rng(world)
    return rng.normal(size=(seeds, 1)) + rng.normal(size=(1, items)) + rng.normal(size=(seeds, items))


def written_out(y: np.ndarray) -> tuple[float, float, float]:
    """The three mean squares, cell by cell."""
    S, I = y.shape
    a = sum(I * (sum(y[s]) / I - y.mean()) ** 2 for s in range(S)) / (S - 1)
    b = sum(S * (sum(y[:, i]) / S - y.mean()) ** 2 for i in range(I)) / (I - 1)
    e = sum((y[s, i] - sum(y[s]) / I - sum(y[:, i]) / S + y.mean()) ** 2 for s in range(S) for i in range(I))
    return a, b, e / ((S - 1) * (I - 1))


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_components_are_the_mean_squares_of_the_table(size: tuple[int, int, int]) -> None:
    y = table(*size)
    S, I = y.shape
    a, b, e = written_out(y)
    found = stats.components(y)
    assert float(found.seed) == pytest.approx(max(a - e, 0) / I)
    assert float(found.item) == pytest.approx(max(b - e, 0) / S)
    assert float(found.residual) == pytest.approx(e)
    assert float(found.variance) == pytest.approx((a + max(b - e, 0)) / (S * I))
    parts = [(a, S - 1)] + ([(b, I - 1), (-e, (S - 1) * (I - 1))] if b > e else [])
    df = sum(v for v, _ in parts) ** 2 / sum(v**2 / n for v, n in parts)
    assert float(found.df) == pytest.approx(max(df, S - 1))


def test_components_are_those_that_made_the_tables() -> None:
    rng = np.random.default_rng(3)
    size = (4000, 5, 12)
    y = rng.normal(0, 2, (*size[:2], 1)) + rng.normal(0, 3, (size[0], 1, size[2])) + rng.normal(size=size)
    found = stats.components(y)
    seen = [float(np.mean(part)) for part in (found.seed, found.item, found.residual, found.variance)]
    assert seen == pytest.approx([4, 9, 1, 4 / 5 + 9 / 12 + 1 / 60], rel=0.05)
    assert float(found.mean.var()) == pytest.approx(seen[-1], rel=0.05)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_the_interval_is_satterthwaites_and_holds_the_one_on_these_items(size: tuple[int, int, int]) -> None:
    y = table(*size)
    found, pair = stats.new_items(frame(y), frame(np.zeros_like(y))), stats.paired(frame(y), frame(np.zeros_like(y)))
    one = stats.components(y)
    half = max(scipy_stats.t.ppf(0.975, float(one.df)) * math.sqrt(float(one.variance)), (pair.high - pair.low) / 2)
    assert found.difference == pytest.approx(pair.difference)
    assert (found.low, found.high) == pytest.approx((y.mean() - half, y.mean() + half))
    assert (pair.new_items_low, pair.new_items_high) == (found.low, found.high)
    assert found.low <= pair.low + 1e-12
    assert pair.high <= found.high + 1e-12
    assert (found.sd_seed, found.sd_item) == pytest.approx((math.sqrt(float(one.seed)), math.sqrt(float(one.item))))


@settings(max_examples=30, deadline=None)
@given(TABLES, st.floats(0.1, 10))
def test_a_ratio_of_sums_keeps_its_seeds_and_its_unit(size: tuple[int, int, int], scale: float) -> None:
    weight = np.random.default_rng(size[2]).integers(1, 9, size[1]).astype(float)
    value = table(*size) * weight
    assert linearised(value, weight).mean(-1) == pytest.approx(value.sum(-1) / weight.sum())
    zero = frame(np.zeros_like(value), weight)
    one, other = (stats.new_items(frame(value * by, weight), zero) for by in (1.0, scale))
    assert (other.low, other.high) == pytest.approx((one.low * scale, one.high * scale))
    equal, plain = np.full(size[1], 2.0), stats.new_items(frame(table(*size)), frame(np.zeros(size[:2])))
    weighted = stats.new_items(frame(2 * table(*size), equal), frame(np.zeros(size[:2]), equal))
    assert (weighted.low, weighted.high) == pytest.approx((plain.low, plain.high))


def test_what_cannot_tell_of_new_items_says_why() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4))
    zero = frame(np.zeros((3, 4)))

    def reason(a: pd.DataFrame, b: pd.DataFrame) -> str:
        found, pair = stats.new_items(a, b), stats.paired(a, b)
        assert math.isnan(found.low)
        assert math.isnan(pair.new_items_low)
        return found.reason

    assert reason(frame(values[:2]), zero) == "fewer than three seeds"
    assert reason(frame(values[:, :2]), frame(np.zeros((3, 2)))) == "fewer than three items"
    assert reason(zero, zero) == "all items and seeds agree"
    renamed = frame(values).assign(item=lambda f: f["item"].where(f["seed"] > 0, f["item"] + "x"))
    assert reason(renamed, renamed.assign(value=0.0)) == "seeds evaluated on different items"
    assert stats.paired(renamed, renamed.assign(value=0.0)).basis == "seeds"
