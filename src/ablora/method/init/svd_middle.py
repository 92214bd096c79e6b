"""A start from the middle of the spectrum."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdMiddle:
    """Start from the r singular triplets in the middle of the spectrum: a control for principal and minor.

    Indices floor((h-r)/2) ... + r with h = min(m, n), S descending; split evenly (see `balanced`).

    Source: sufenlp/MiLoRA@4740756 svd_init.py (mode mid); not in the paper's main text.
    Differs: the base weight stays as it is.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        start = (min(site.weight.shape) - site.rank) // 2
        return torch.arange(start, start + site.rank)

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        return balanced(triplets, site.scale)
