"""MiLoRA's start: the smallest singular triplets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdMinor:
    """Start from the r smallest singular triplets of the weight, so that what is learnt avoids its main directions.

    B0 A0 s = U_[h-r..h) S V^T with h = min(m, n), S descending; split evenly (see `balanced`).

    Source: arXiv:2406.09044 equations 4-6; sufenlp/MiLoRA@4740756 svd_init.py (mode min).
    Differs: the base weight stays as it is; the reference saves a residual model in half precision, which rounds away
        part of these small components.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        h = min(site.weight.shape)
        return torch.arange(h - site.rank, h)

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        return balanced(triplets, site.scale)
