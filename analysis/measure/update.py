"""What an adapter adds to the true base weight, always as two thin factors and never as a dense matrix.

dW = B A = sum_i sigma_i u_i v_i^T,  B (m, k), A (k, n) with the scale folded in, in float64. For a started pair

    s (B A - B0 A0) = s [dB B0] [A; dA],   dA = A - A0, dB = B - B0

so that a small update of large factors keeps its digits (the difference of the two products would lose them).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Factors = Mapping[str, Tensor]
"""One module's tensors by role, rank first as ablora saves them: A (rank, in), B (rank, out), scale (rank,), A0 and B0
where B started away from zero, members (rank, experts) for a mixture, mean_gates (experts,) where its start is not
subtracted at 1/E."""


class Update(NamedTuple):
    """dW = B A."""

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]


class Decomposition(NamedTuple):
    """dW = sum_i sigma_i u_i v_i^T over its numerical rank, descending; empty where dW = 0."""

    u: Float[Tensor, "k out"]
    sigma: Float[Tensor, " k"]
    v: Float[Tensor, "k in"]


def pair(factors: Factors) -> Update:
    """The learnt update of one pair: s (B A - B0 A0)."""
    return _learnt(factors, slice(None))


def experts(factors: Factors) -> list[Update]:
    """The learnt update of every expert e: s (B_e A_e - B0_e A0_e). What a chosen expert adds to a token beside it,
    its start, is in none of them."""
    return [_learnt(factors, members.bool()) for members in factors["members"].mT]


def expected(factors: Factors, gates: Float[Tensor, " experts"]) -> Update:
    """What a mixture adds on average over tokens with mean gates g: s sum_e (g_e B_e A_e - (1/E) B0_e A0_e).

    In displacements: s sum_e [dB_e B0_e] [g_e A_e; g_e dA_e + (g_e - 1/E) A0_e]. Beside a shared expert, whose start
    counts 1, that of the others counts 1/(E - 1).
    """
    f = {role: tensor.double() for role, tensor in factors.items()}
    gate = (f["members"] @ gates.double())[:, None]
    scale = f["scale"][:, None]
    if "A0" not in f:
        return Update((scale * f["B"]).mT, gate * f["A"])
    mean = (f["members"] @ f["mean_gates"])[:, None] if "mean_gates" in f else 1 / f["members"].shape[1]
    start = gate * (f["A"] - f["A0"]) + (gate - mean) * f["A0"]
    out = torch.cat([f["B"] - f["B0"], f["B0"]])
    return Update((torch.cat([scale, scale]) * out).mT, torch.cat([gate * f["A"], start]))


def _learnt(factors: Factors, rows: slice | Tensor) -> Update:
    f = {role: factors[role][rows].double() for role in ("A", "B", "scale", "A0", "B0") if role in factors}
    scale = f["scale"][:, None]
    if "A0" not in f:
        return Update((scale * f["B"]).mT, f["A"])
    out, into = torch.cat([f["B"] - f["B0"], f["B0"]]), torch.cat([f["A"], f["A"] - f["A0"]])
    return Update((torch.cat([scale, scale]) * out).mT, into)


def decompose(update: Update) -> Decomposition:
    """The singular value decomposition of B A up to its numerical rank, in O((m + n) k^2 + k^3).

    B = Q_B R_B and A^T = Q_A R_A;  svd(R_B R_A^T) = u S v^T;  U = Q_B u, V = Q_A v. Kept are the singular values above
    max(m, n) * eps * ||R_B||_F ||R_A||_F in float64: rounding of the product itself. Directions are brought to equal
    length in both factors first, which leaves B A as it is and makes that bound tight.
    """
    B, A = _balanced(update)
    q_b, r_b = torch.linalg.qr(B)
    q_a, r_a = torch.linalg.qr(A.mT)
    u, sigma, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    floor = max(len(B), A.shape[1]) * torch.finfo(sigma.dtype).eps * r_b.norm() * r_a.norm()
    rank = int((sigma > floor).sum())
    return Decomposition((q_b @ u[:, :rank]).mT, sigma[:rank], vh[:rank] @ q_a.mT)


def _balanced(update: Update) -> Update:
    B, A = update.B.double(), update.A.double()
    b, a = B.norm(dim=0), A.norm(dim=1)
    factor = torch.where((a > 0) & (b > 0), (a / b).sqrt(), torch.ones_like(a))
    return Update(B * factor, A / factor[:, None])
