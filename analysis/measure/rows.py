"""The measures of one part of one module, as rows of tidy tables."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.seeds import generator
from ablora_analysis.measure import null, projection, spectrum
from ablora_analysis.measure.adapters import EXPECTED, WHOLE, Part
from ablora_analysis.measure.base_view import AGAINST, CHECKED, KEPT_PER_CHECKED, BaseView
from ablora_analysis.measure.subspace import phi
from ablora_analysis.measure.update import Decomposition

ZERO = "the update is zero"
COSINES = (0.3, 0.5, 0.7, 0.9)
"""Below each of these largest cosines with W0's kept directions a vector is counted as an intruder."""
NAN = float("nan")
_SPARE = 8
"""Random directions in the subspace iteration beside those that are expected."""
Row = dict[str, Any]


class Seen(NamedTuple):
    """One part of one adapter in one module."""

    part: str
    rank: int
    """How many of the update's directions are compared: no more than it has."""
    own: Part
    d: Decomposition
    base: BaseView


def see(name: str, part: Part, d: Decomposition, base: BaseView) -> Seen:
    return Seen(name, min(len(d.sigma), part.rank, base.rank), part, d, base)


def subspace_rows(seen: Seen) -> Iterator[Row]:
    """phi(i, i) of the update's top directions and W0's top, bottom and random ones, left and right."""
    k = seen.rank
    for s, side in enumerate(("left", "right")):
        d, own = seen.base.shape[s], (seen.d.u, seen.d.v)[s][:k]
        for against in AGAINST:
            row = {"side": side, "against": against, "i": k, "j": k}
            if k == 0:
                yield {**row, "phi": NAN, "null": NAN, "null_low": NAN, "null_high": NAN, "reason": ZERO}
                continue
            value = float(phi(own, seen.base.pairs(against)[s][:k])[-1, -1])
            low, high = null.band(d, k, k)
            yield {**row, "phi": value, "null": null.expectation(d, k, k), "null_low": low, "null_high": high}


def projection_rows(seen: Seen) -> Iterator[Row]:
    """Norms of W0 and of the update within the update's own directions, W0's top ones and random ones."""
    k, base, update = seen.rank, seen.base, seen.own.update
    expected = projection.expected_random(base.norm, k, *base.shape)
    if k == 0:
        for basis in ("update", "top", "random"):
            empty = {"norm_w": NAN, "norm_update": NAN, "amplification": NAN, "expected_random": NAN}
            yield {"basis": basis, "rank": 0, **empty, "reason": ZERO}
        return
    top = base.pairs("top")
    within_top = (top.u[:k] @ update.B.double()) @ (update.A.double() @ top.v[:k].mT)
    found = {
        "update": projection.Row(
            projection.projected_norm(base.W, seen.d.u[:k], seen.d.v[:k]), _norm(seen.d.sigma[:k])
        ),
        "top": projection.Row(_norm(base.sigma[:k]), float(within_top.norm())),
        "random": projection.Row(base.random_norm(k), projection.norm_in_frames(base.frames(k), *update)),
    }
    for basis, row in found.items():
        finite = row.norm_w > 0
        values = {**row._asdict(), "amplification": row.amplification if finite else NAN}
        reason = "" if finite else "W0 has nothing in these directions"
        yield {"basis": basis, "rank": k, **values, "expected_random": expected, "reason": reason}


def spectrum_rows(seen: Seen) -> Iterator[Row]:
    """Size, spread and effect of the update's spectrum; a value of a zero update that has no meaning is NaN."""
    sigma, base = seen.d.sigma, seen.base
    norm = _norm(sigma)
    values = {
        "frobenius": norm,
        "spectral": float(sigma[0]) if len(sigma) else 0.0,
        "numerical_rank": float(len(sigma)),
        "relative": norm / base.norm if base.norm > 0 else NAN,
        **spectrum.effective_ranks(sigma),
        **spectrum.energy(sigma, _counts(seen.own.rank)),
        **_moved(seen),
        **(_intruders(seen) if seen.part in (WHOLE, EXPECTED) else {}),
    }
    for measure, value in values.items():
        reason = "" if value == value else "W0 is zero" if measure == "relative" else ZERO
        yield {"measure": measure, "value": value, "reason": reason}


def _norm(sigma: Float[Tensor, " k"]) -> float:
    return float(sigma.double().norm())


def _counts(rank: int) -> list[int]:
    """1, 2, 4, ... and the rank."""
    return sorted({2**p for p in range(rank.bit_length())} | {rank})


def _moved(seen: Seen) -> dict[str, float]:
    """`moved_top_1` of the largest pair of W0, `moved_bottom_1` of the smallest; `moved_top` is their mean."""
    out = {}
    for against in ("top", "bottom"):
        u, v = seen.base.pairs(against)
        found = spectrum.moved(seen.own.update, u[: seen.own.rank], v[: seen.own.rank])
        out[f"moved_{against}"] = float(found.mean())
        out |= {f"moved_{against}_{i}": float(value) for i, value in enumerate(found, 1)}
    return out


def _intruders(seen: Seen) -> dict[str, float]:
    base, rank = seen.base, min(seen.own.rank, seen.base.rank)
    count, kept = min(rank, CHECKED), base.kept(rank)
    spare = torch.randn(_SPARE, base.shape[1], dtype=torch.float64, generator=generator("spare", base.name))
    start = torch.cat([kept.v[: KEPT_PER_CHECKED * count], seen.d.v[:count], spare])[: min(base.shape)]
    vectors = spectrum.top_left_vectors(base.W, seen.own.update, start, count)
    cosines = spectrum.largest_cosines(vectors, kept.u)
    return {
        **{f"intruders_{limit}": float((cosines < limit).sum()) for limit in COSINES},
        "intruders_of": float(count),
        "intruders_kept": float(len(kept.u)),
    }
