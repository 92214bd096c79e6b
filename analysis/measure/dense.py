"""Updates that are whole matrices: full fine-tuning's, DoRA's, and dW_e = D_e of the experts of `FullMoE`."""

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.spec import check
from ablora_analysis.measure.adapters import EXPECTED, WHOLE, Part
from ablora_analysis.measure.update import Update

COMPARED = 64
"""Directions of a whole matrix that are compared, those of all experts together: it has no rank that says how many."""
LARGEST = 2048
"""The smaller side of a matrix that is decomposed; a mixture's module has E + 1 of them."""


def compared(out_features: int, in_features: int) -> int:
    return min(COMPARED, out_features, in_features)


def require_small(field: str, out_features: int, in_features: int) -> None:
    """Refuse a matrix whose exact decomposition takes too long."""
    legal = f"a layer whose smaller side is at most {LARGEST}, for a whole matrix as an update"
    check(min(out_features, in_features) <= LARGEST, field, f"{out_features} x {in_features}", legal)


def parts(D: Float[Tensor, "experts out in"], gates: Float[Tensor, " experts"] | None) -> dict[str, Part]:
    """What the mixture adds on average over tokens with mean gates g, sum_e g_e D_e, and what each expert learnt. The
    gates are uniform where they are not known."""
    experts, rank = len(D), compared(*D.shape[1:])
    if experts == 1:
        return {WHOLE: Part(update(D[0]), rank, "")}
    mean = torch.full((experts,), 1 / experts, dtype=torch.float64) if gates is None else gates.double()
    whole = update(torch.einsum("e,eoi->oi", mean, D.double()))
    own = max(rank // experts, 1)
    out = {EXPECTED: Part(whole, rank, "uniform" if gates is None else "measured")}
    return out | {f"expert {e}": Part(update(expert), own, "") for e, expert in enumerate(D)}


def update(matrix: Float[Tensor, "out in"]) -> Update:
    """The matrix as B A, one of which is the identity of the smaller side."""
    matrix = matrix.double()
    one = torch.eye(min(matrix.shape), dtype=torch.float64)
    return Update(one, matrix) if len(matrix) <= matrix.shape[1] else Update(matrix, one)


def rescaled(own: Update, weight: Float[Tensor, "out in"], magnitude: Float[Tensor, " out"]) -> Update:
    """DoRA's diag(m / |V|) V - W0, V = W0 + B A, which has the rank of W0."""
    whole = weight + own.B @ own.A
    return update((magnitude / torch.linalg.vector_norm(whole, dim=1))[:, None] * whole - weight)
