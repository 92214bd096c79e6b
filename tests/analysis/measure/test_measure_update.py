"""The update in factors: equal to the dense one, its rank known, its digits kept."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from measure_made import gaussian

from ablora_analysis.measure.update import Decomposition, Update, decompose, expected, experts, pair

SIZES = st.integers(1, 24)


def dense(update: Update) -> np.ndarray:
    return (update.B @ update.A).numpy()


def rebuilt(d: Decomposition) -> np.ndarray:
    return ((d.u * d.sigma[:, None]).mT @ d.v).numpy()


def started(rank: int, out: int, into: int, move: float, num: int = 1) -> dict[str, torch.Tensor]:
    """Float32 factors of E = num experts that moved a little away from where they started."""
    A0, B0 = gaussian(rank, into, seed=1).float(), gaussian(rank, out, seed=2).float()
    A, B = A0 + move * gaussian(rank, into, seed=3).float(), B0 + move * gaussian(rank, out, seed=4).float()
    members = torch.eye(num).repeat_interleave(rank // num, dim=0)
    return {"A": A, "B": B, "A0": A0, "B0": B0, "scale": torch.full((rank,), 1.5), "members": members}


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 12), st.integers(0, 99), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_any_two_factors_are_decomposed_as_their_product_is(out, into, rank, seed, scale_b, scale_a):
    B, A = scale_b * gaussian(out, rank, seed=seed), scale_a * gaussian(rank, into, seed=seed + 1)
    d = decompose(Update(B, A))
    product = (B @ A).numpy()
    sigma = np.linalg.svd(product, compute_uv=False)
    assume(sigma[min(out, into, rank) - 1] > 1e-6 * sigma[0])
    assert len(d.sigma) == min(out, into, rank)
    np.testing.assert_allclose(d.sigma.numpy(), sigma[: len(d.sigma)], rtol=1e-9)
    np.testing.assert_allclose(rebuilt(d), product, atol=1e-12 * sigma[0] * max(out, into))
    for vectors in (d.u, d.v):
        np.testing.assert_allclose((vectors @ vectors.mT).numpy(), np.eye(len(d.sigma)), atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 24), st.integers(6, 24), st.integers(1, 3), st.integers(1, 4), st.floats(1e-8, 1e8))
def test_the_numerical_rank_is_that_of_the_product(out, into, rank, more, scale):
    """Directions that repeat others, cancel them, or are zero in one factor add nothing."""
    B, A = gaussian(out, rank), gaussian(rank, into, seed=1)
    mix = gaussian(rank, more, seed=2)
    doubled = Update(
        torch.cat([B, B @ mix, B[:, :1], B[:, :1]], 1), torch.cat([A, 0 * gaussian(more, into), A[:1], -A[:1]])
    )
    d = decompose(Update(scale * doubled.B, doubled.A))
    assert len(d.sigma) == rank
    np.testing.assert_allclose(rebuilt(d), (scale * B @ A).numpy(), atol=1e-9 * scale)


def test_a_zero_update_has_no_direction():
    for B, A in [(torch.zeros(9, 3), gaussian(3, 7)), (gaussian(9, 3), torch.zeros(3, 7)), (torch.zeros(9, 3),) * 2]:
        d = decompose(Update(B.double(), A.double() if A.shape == (3, 7) else torch.zeros(3, 7, dtype=torch.float64)))
        assert len(d.sigma) == len(d.u) == len(d.v) == 0
    B, A = gaussian(9, 1), gaussian(1, 7)
    cancelled = decompose(Update(torch.cat([B, B], 1), torch.cat([A, -A])))
    assert len(cancelled.sigma) == 0


@pytest.mark.parametrize("move", [1e-1, 1e-5])
def test_a_started_pair_keeps_the_digits_of_a_small_update(move):
    f = {role: t.double() for role, t in started(4, 20, 15, move).items()}
    exact = 1.5 * (f["B"].mT @ f["A"] - f["B0"].mT @ f["A0"]).numpy()
    found = decompose(pair(started(4, 20, 15, move)))
    assert len(found.sigma) == 8
    np.testing.assert_allclose(rebuilt(found), exact, atol=1e-7 * np.abs(exact).max())


def test_a_pair_at_its_start_and_a_plain_one_at_zero_are_zero():
    f = started(4, 20, 15, 0.0)
    assert len(decompose(pair(f)).sigma) == 0
    plain = {"A": f["A"], "B": torch.zeros(4, 20), "scale": f["scale"]}
    assert len(decompose(pair(plain)).sigma) == 0


@pytest.mark.parametrize("start", [True, False])
def test_experts_and_what_is_expected_of_them(start):
    f = started(6, 20, 15, 1e-2, num=3)
    if not start:
        f = {role: t for role, t in f.items() if role not in ("A0", "B0")}
    gates = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    d = {role: t.double().numpy() for role, t in f.items()}
    blocks = [slice(0, 2), slice(2, 4), slice(4, 6)]
    now = [1.5 * d["B"][b].T @ d["A"][b] for b in blocks]
    begun = [1.5 * d["B0"][b].T @ d["A0"][b] if start else 0 * now[0] for b in blocks]
    for update, a, b in zip(experts(f), now, begun):
        np.testing.assert_allclose(dense(update), a - b, atol=1e-12)
        assert len(decompose(update).sigma) == (4 if start else 2)
    wanted = sum(g * a for g, a in zip(gates.tolist(), now)) - sum(b / 3 for b in begun)
    np.testing.assert_allclose(dense(expected(f, gates)), wanted, atol=1e-12)


def test_uniform_gates_at_the_start_expect_nothing():
    f = started(6, 20, 15, 0.0, num=3)
    assert len(decompose(expected(f, torch.full((3,), 1 / 3, dtype=torch.float64))).sigma) == 0
    assert len(decompose(expected(f, torch.tensor([0.4, 0.3, 0.3]))).sigma) > 0
