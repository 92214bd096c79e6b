"""The rows of one module against dense float64 oracles."""

import math

import measure_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_made import gaussian, spread

from ablora.spectra.library import Library
from ablora_analysis.measure import rows
from ablora_analysis.measure.adapters import WHOLE, Part
from ablora_analysis.measure.base_view import BaseView
from ablora_analysis.measure.projection import expected_random
from ablora_analysis.measure.spectrum import effective_ranks, energy
from ablora_analysis.measure.update import Update, decompose

NONE = Library(None)


def seen(w: torch.Tensor, update: Update, rank: int) -> rows.Seen:
    return rows.see(WHOLE, Part(update, rank, ""), decompose(update), BaseView("m.layers.0.q_proj", w, rank, NONE))


def values(found) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in rows.spectrum_rows(found)}


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 30), st.integers(6, 30), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1e-4, 1.0, 1e3]))
def test_every_row_equals_the_dense_oracle(out, into, rank, seed, scale):
    w = spread(out, into, seed)
    b, a = spread(out, rank, seed + 10), spread(rank, into, seed + 20)
    update = Update(scale * b, a)
    dense = (update.B @ update.A).numpy()
    found = seen(w, update, rank)
    assert found.rank == rank

    phi = {(r["side"], r["against"]): r for r in rows.subspace_rows(found)}
    for key, wanted in oracle.subspace(w.numpy(), dense, rank).items():
        assert phi[key]["phi"] == pytest.approx(wanted, abs=1e-5)
        assert phi[key]["null"] == rank / (out if key[0] == "left" else into)
        assert phi[key]["null_low"] <= phi[key]["null"] <= phi[key]["null_high"]

    norms = {r["basis"]: r for r in rows.projection_rows(found)}
    for basis, (of_w, of_update) in oracle.projection(w.numpy(), dense, rank).items():
        assert norms[basis]["norm_w"] == pytest.approx(of_w, rel=1e-5, abs=1e-9)
        assert norms[basis]["norm_update"] == pytest.approx(of_update, rel=1e-5, abs=1e-9 * scale)
    assert norms["update"]["amplification"] == pytest.approx(
        np.linalg.norm(dense) / norms["update"]["norm_w"], rel=1e-9
    )

    wanted = oracle.spectrum(w.numpy(), dense, rank)
    cosines = wanted.pop("all_cosines")[: min(rank, 16)]
    mine = values(found)
    for name, value in wanted.items():
        assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-9 * scale), name
    if mine["intruders_kept"] == min(out, into):
        for limit in rows.COSINES:
            if np.abs(cosines - limit).min() > 1e-3:
                assert mine[f"intruders_{limit}"] == (cosines < limit).sum()


def test_a_planted_direction_is_an_intruder_and_a_stretched_one_is_none():
    w = spread(60, 40)
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    other = torch.linalg.qr(gaussian(60, 3, seed=9))[0]
    planted = Update(3 * other, torch.linalg.qr(gaussian(40, 3, seed=8))[0].mT)
    # In high dimension a random direction has a small cosine with each of W's; here the largest of 40 stays under 0.7.
    assert values(seen(w, planted, 4))["intruders_0.7"] == 3
    stretched = Update(5 * u[:, 5:7], vh[5:7])
    assert values(seen(w, stretched, 4))["intruders_0.9"] == 0
    found = values(seen(w, stretched, 8))
    assert [found[f"moved_top_{i}"] for i in (5, 6, 7, 8)] == pytest.approx([0, 5, 5, 0], abs=1e-9)
    assert found["moved_top"] == pytest.approx(10 / 8)


def test_effective_ranks_of_known_spectra():
    equal = effective_ranks(torch.full((5,), 3.0))
    assert list(equal.values()) == pytest.approx([5.0] * len(equal))
    uneven = effective_ranks(torch.tensor([2.0, 1.0, 0.1, 0.01]))
    assert (uneven["count_1pct"], uneven["count_10pct"]) == (3, 2)
    assert uneven["stable_rank"] == pytest.approx(1 + 0.25 + 0.0025 + 0.000025)
    assert uneven["nuclear_rank"] == pytest.approx(1.555)
    assert energy(torch.tensor([2.0, 1.0]), [1, 2]) == pytest.approx({"energy_at_1": 0.8, "energy_at_2": 1.0})


def test_the_random_column_meets_its_expectation():
    """Frames of 12 modules together: each is a root mean square over 16 pairs of 8 x 8 entries."""
    ratios = []
    for i in range(12):
        w = spread(48, 64, seed=i)
        view = BaseView(f"m.layers.{i}.q_proj", w, 8, NONE)
        ratios.append(view.random_norm(8) / expected_random(float(w.norm()), 8, 48, 64))
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / math.sqrt(12) + 0.01)
    assert np.std(ratios) < 0.2
    assert expected_random(97.36, 64, 4096, 4096) == pytest.approx(1.52, abs=0.005)  # arXiv:2406.09044 table 7: 1.50
    assert expected_random(123.0, 64, 4096, 11008) == pytest.approx(1.17, abs=0.005)


def test_a_zero_update_has_reasons_in_place_of_numbers():
    found = seen(spread(12, 9), Update(torch.zeros(12, 3).double(), gaussian(3, 9)), 3)
    for row in [*rows.subspace_rows(found), *rows.projection_rows(found)]:
        assert row["reason"] == rows.ZERO
        assert math.isnan(row.get("phi", row.get("amplification")))
    mine = {row["measure"]: row for row in rows.spectrum_rows(found)}
    for name in ("frobenius", "spectral", "relative", "numerical_rank", "moved_top", "intruders_0.9", "count_1pct"):
        assert (mine[name]["value"], mine[name]["reason"]) == (0.0, "")
    for name in ("stable_rank", "entropy_rank", "energy_at_1"):
        assert math.isnan(mine[name]["value"])
        assert mine[name]["reason"] == rows.ZERO


def test_a_base_of_nothing_has_a_reason_too():
    update = Update(gaussian(12, 2), gaussian(2, 9))
    found = seen(torch.zeros(12, 9, dtype=torch.float64), update, 2)
    reasons = {row["basis"]: row["reason"] for row in rows.projection_rows(found)}
    assert set(reasons.values()) == {"W0 has nothing in these directions"}
    relative = next(row for row in rows.spectrum_rows(found) if row["measure"] == "relative")
    assert (math.isnan(relative["value"]), relative["reason"]) == (True, "W0 is zero")


def test_a_deficient_update_is_compared_at_its_own_rank():
    b, a = spread(20, 2), spread(2, 15, seed=5)
    found = seen(spread(20, 15), Update(torch.cat([b, b], 1), torch.cat([a, a])), 4)
    assert {(row["i"], row["j"]) for row in rows.subspace_rows(found)} == {(2, 2)}
    assert {row["rank"] for row in rows.projection_rows(found)} == {2}


def test_what_is_seen_of_a_base_does_not_depend_on_who_else_is_measured(tmp_path):
    """A cache that keeps more vectors for others, and companions of a higher rank, change no number."""
    w = spread(40, 30).float()
    update = Update(gaussian(40, 2), gaussian(2, 30))
    alone = BaseView("q", w, 2, Library(tmp_path / "alone"))
    Library(tmp_path / "shared").spectrum(w, torch.arange(30))
    beside = BaseView("q", w, 12, Library(tmp_path / "shared"))
    for make in (rows.subspace_rows, rows.projection_rows, rows.spectrum_rows):
        a, b = (list(make(rows.see(WHOLE, Part(update, 2, ""), decompose(update), v))) for v in (alone, beside))
        assert a == b
