"""phi, angles and distance against their definitions; random subspaces against their expectation and band."""

import math

import measure_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_made import gaussian

from ablora_analysis.measure import null
from ablora_analysis.measure.pairs import grid, same_start
from ablora_analysis.measure.subspace import grassmann_distance, phi, principal_angles


def frame(rank: int, d: int, seed: int) -> torch.Tensor:
    """Orthonormal rows."""
    return torch.linalg.qr(gaussian(d, rank, seed=seed))[0].mT


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 99))
def test_phi_at_every_i_and_j(r1, r2, more, seed):
    d = max(r1, r2) + more
    x, y = frame(r1, d, seed), frame(r2, d, seed + 1000)
    found = phi(x, y)
    assert found.shape == (r1, r2)
    wanted = [[oracle.phi(x.mT.numpy(), y.mT.numpy(), i, j) for j in range(1, r2 + 1)] for i in range(1, r1 + 1)]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_allclose(phi(x, x).numpy(), np.ones((r1, r1)), atol=1e-12)


def test_angles_and_distance_of_a_known_pair_of_planes():
    a, b = 0.3, 1.1
    x = torch.eye(4, dtype=torch.float64)[:2]
    y = torch.tensor([[math.cos(a), 0, math.sin(a), 0], [0, math.cos(b), 0, math.sin(b)]], dtype=torch.float64)
    np.testing.assert_allclose(principal_angles(x, y).numpy(), [a, b], atol=1e-12)
    assert float(grassmann_distance(x, y)) == pytest.approx(math.hypot(math.sin(a), math.sin(b)))
    assert float(phi(x, y)[1, 1]) == pytest.approx(1 - float(grassmann_distance(x, y)) ** 2 / 2)


@pytest.mark.parametrize(("d", "i", "j"), [(40, 8, 8), (30, 3, 7), (30, 7, 3), (12, 9, 7), (9, 1, 1)])
def test_random_subspaces_meet_their_expectation_and_the_band_at_its_rate(d, i, j):
    """Dense frames, which share nothing with how the band is drawn."""
    rng = np.random.default_rng(1)
    other = np.linalg.qr(rng.standard_normal((d, j)))[0]
    draws = 3000
    values = np.array([oracle.phi(np.linalg.qr(g)[0], other, i, j) for g in rng.standard_normal((draws, d, i))])
    error = values.std() / math.sqrt(draws)
    assert abs(values.mean() - null.expectation(d, i, j)) < 4 * error + 1e-12
    low, high = null.band(d, i, j)
    outside = np.mean((values < low) | (values > high))
    # Binomial error of the share, and that of the band's own ends (4000 draws).
    assert abs(outside - 0.05) < 4 * math.sqrt(0.05 * 0.95 * (1 / draws + 1 / null.DRAWS))


def test_the_band_is_symmetric_repeatable_and_closed_where_nothing_is_free():
    assert null.band(20, 3, 5) == null.band(20, 5, 3)
    again = np.quantile(null.draws(20, 5, 3, np.random.default_rng([20, 3, 5])), [0.025, 0.975])
    assert tuple(again) == null.band(20, 3, 5)
    assert null.band(6, 6, 4) == pytest.approx((1.0, 1.0))


def test_the_grid_has_all_directions_up_to_16_and_the_last_always():
    assert grid(8).tolist() == list(range(1, 9))
    assert grid(16).tolist() == list(range(1, 17))
    assert len(grid(64)) == 16
    assert grid(64)[[0, -1]].tolist() == [1, 64]


@given(st.integers(1, 80), st.lists(st.integers(0, 80), min_size=1, max_size=4))
def test_modules_of_unequal_ranks_have_the_least_ones_directions_in_common(least, more):
    grids = [grid(least + extra, least) for extra in more]
    wanted = set(grid(least).tolist())
    assert all(wanted <= set(found.tolist()) for found in grids)
    assert [found[-1] for found in grids] == [least + extra for extra in more]


def test_starts_are_the_same_up_to_a_factor_and_a_longer_one():
    a = gaussian(4, 9).float()
    assert same_start(a, 3 * a)
    assert same_start(a, torch.cat([a, gaussian(4, 9, seed=2).float()]))
    assert same_start(a, gaussian(4, 9, seed=1).float()) is False
    assert same_start(None, a) is None
