"""Sign flips and the bootstrap: against every pattern, and only where the design lets them say something."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from test_stats import NUMBERS, frame

from ablora.spec import BadInput
from ablora_analysis import stats
from ablora_analysis.stats.permutation import EXACT


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_a_sign_flip_p_counts_every_pattern(d: list[float]) -> None:
    x = np.array(d)
    sums = [abs(float(np.array(signs) @ x)) for signs in product((1, -1), repeat=x.size)]
    oracle = np.mean([s >= abs(x.sum()) - 1e-9 for s in sums])
    found = stats.sign_flip_p(x)
    assert found == pytest.approx(oracle)
    assert stats.smallest_p(x.size) <= found <= 1
    assert stats.sign_flip_p(-x) == found


def test_a_sign_flip_p_is_scipys_and_goes_on_beyond_the_exact_count() -> None:
    x = np.random.default_rng(1).normal(0.5, 1, EXACT + 6)
    oracle = scipy_stats.permutation_test((x[:8],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip_p(x[:8]) == pytest.approx(oracle.pvalue)
    assert stats.sign_flip_p(np.arange(1.0, 9)) == stats.smallest_p(8)
    many, exact = stats.sign_flip_p(x), float(scipy_stats.ttest_1samp(x, 0).pvalue)
    assert many == pytest.approx(exact, abs=0.02)
    assert stats.sign_flip_p(np.ones(30)) == pytest.approx(1e-5)
    with pytest.raises(BadInput, match="finite"):
        stats.sign_flip_p(np.array([1.0, math.nan]))


@pytest.mark.parametrize(("seeds", "methods", "used"), [(3, 2, False), (5, 2, False), (6, 2, True), (6, 4, False),
                                                        (7, 4, True)])  # fmt: skip
def test_sign_flips_are_used_only_where_they_could_reach_alpha(seeds: int, methods: int, used: bool) -> None:
    rng = np.random.default_rng(0)
    scores = {str(m): frame(rng.normal(3 * m, 0.1, (seeds, 1))) for m in range(methods)}
    found = stats.tied_with_best(scores, lower_is_better=True)
    assert stats.design_power(seeds, methods - 1).permutation == used
    assert [not math.isnan(p) for p in found.p_permutation.values()] == [used] * (methods - 1)
    if used:
        assert max(found.p_permutation.values()) == pytest.approx(stats.smallest_p(seeds) * (methods - 1))


def test_a_bootstrap_needs_ten_seeds_and_ten_items() -> None:
    y = np.random.default_rng(2).normal(1, 1, (12, 15))
    zero = frame(np.zeros_like(y))
    found = stats.bootstrap(frame(y), zero)
    assert found == stats.bootstrap(frame(y)[::-1], zero)
    assert found.difference == pytest.approx(y.mean())
    assert found.low < found.difference < found.high
    crossed = stats.new_items(frame(y), zero)
    assert (found.high - found.low) / (crossed.high - crossed.low) == pytest.approx(1, abs=0.3)
    with pytest.raises(BadInput, match="seeds=9 is not legal: at least 10"):
        stats.bootstrap(frame(y[:9]), zero)
    with pytest.raises(BadInput, match="items=9"):
        stats.bootstrap(frame(y[:, :9]), frame(np.zeros((12, 9))))


def test_a_bootstrap_of_weights_is_that_of_their_ratios() -> None:
    weight, y = np.full(20, 3.0), np.random.default_rng(2).normal(1, 1, (10, 20))
    plain = stats.bootstrap(frame(y), frame(np.zeros_like(y)))
    weighted = stats.bootstrap(frame(3 * y, weight), frame(np.zeros_like(y), weight))
    assert weighted == pytest.approx(plain)
