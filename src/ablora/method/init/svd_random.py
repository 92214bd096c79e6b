"""A start from random singular triplets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdRandom:
    """Start from r singular triplets drawn at random: the control that says whether it matters which.

    r distinct indices of 0..h-1, sorted, h = min(m, n); split evenly (see `balanced`).

    Source: arXiv:2406.09044 table 6; sufenlp/MiLoRA@4740756 svd_init.py (mode random).
    Differs: drawn from the run's own generator, per module, so that seeds differ; the reference fixes seed 42.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        h = min(site.weight.shape)
        return torch.randperm(h, generator=site.generator)[: site.rank].sort().values

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        return balanced(triplets, site.scale)
