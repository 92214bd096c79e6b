"""PiSSA's start: the largest singular triplets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdPrincipal:
    """Start from the r largest singular triplets of the weight, so that the factors hold its main directions.

    B0 A0 s = U_r S_r V_r^T with W = U S V^T, S descending; split evenly (see `balanced`).

    Source: arXiv:2404.02948 equations 2-4; huggingface/peft 0.21.2 tuners/lora/layer.py (pissa_init);
        GraphPKU/PiSSA@87f4db6.
    Differs: the exact decomposition only (the reference offers a randomised one, pissa_niter_k); the base weight stays
        as it is and the start's product is subtracted in the forward, where the reference overwrites the base.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        return torch.arange(site.rank)

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        return balanced(triplets, site.scale)
