"""Singular value decompositions of base weights: the whole spectrum, and the vectors that were asked for."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Spectrum(NamedTuple):
    """W = sum_i sigma_i u_i v_i^T over all h = min(m, n); vectors are kept for `indices` only."""

    sigma: Float[Tensor, " h"]
    """All singular values, descending."""
    indices: Int[Tensor, " kept"]
    """Which triplets `u` and `v` hold, ascending."""
    u: Float[Tensor, "kept out"]
    v: Float[Tensor, "kept in"]

    def positions(self, indices: Int[Tensor, " wanted"]) -> Int[Tensor, " wanted"] | None:
        """Rows of `u` and `v` of the wanted triplets; None if one of them was not kept."""
        at = torch.searchsorted(self.indices, indices.contiguous()).clamp(max=max(len(self.indices) - 1, 0))
        found = len(self.indices) > 0 and bool((self.indices[at] == indices).all())
        return at if found else None


def decompose(weight: Float[Tensor, "out in"], indices: Int[Tensor, " kept"]) -> Spectrum:
    """The decomposition of one weight, at least in float32.

    The sign of each pair (u_i, v_i) is fixed: the largest entry of u_i is positive. It is free otherwise, and every
    use of the vectors depends on products of both only.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    u, sigma, vh = torch.linalg.svd(weight.detach().to("cpu", dtype), full_matrices=False)
    kept = indices.unique(sorted=True)
    u, v = u.T[kept], vh[kept]
    sign = u.gather(1, u.abs().argmax(1, keepdim=True)).sign()
    return Spectrum(sigma, kept, (u * sign).contiguous(), (v * sign).contiguous())
