"""GOAT's start: each expert begins in a segment of its own of the spectrum."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdSegments:
    """Start expert j from the singular triplets at the head of segment j of the spectrum, made small by rho.

    With h = min(m, n), E experts of rank r_e = r/E and segments of length t = floor(h/E), expert j (from 0) takes
      own (O):        j t, ..., j t + r_e - 1          principal (P): j r_e, ...
      minor (M):      h - (j+1) r_e, ...               random (R):    r_e * a random multiple, distinct over experts
    and s B_j A_j = (1/rho) U_j S_j V_j^T, whatever s.

    Source: arXiv:2502.16894v4 section 3.2 and appendix G.3 (O, P, M, R); Facico/GOAT-PEFT@ef4d21a
        goat/peta/src/goat/layer.py (svd_init; rho = 10 fixed there).
    Differs: W stays as it is; (s/E) sum_j B0_j A0_j is subtracted in the forward (`structure: experts`). The random
        variant draws per module from the run's own generator.
    """

    revision: ClassVar[int] = 1
    by_segment: ClassVar[bool] = True
    """Experts start in different places."""
    variant: Literal["own", "principal", "minor", "random"]
    rho: float

    def __post_init__(self) -> None:
        check(self.rho > 0, "rho", self.rho, "a positive number; the paper's is 10")

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        h, experts = min(site.weight.shape), site.experts
        size = site.rank // experts
        match self.variant:
            case "own":
                heads = torch.arange(experts) * (h // experts)
            case "principal":
                heads = torch.arange(experts) * size
            case "minor":
                heads = h - (torch.arange(experts) + 1) * size
            case "random":
                heads = torch.randperm(h // size, generator=site.generator)[:experts] * size
        return (heads[:, None] + torch.arange(size)).flatten()

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        return balanced(triplets._replace(sigma=triplets.sigma / self.rho), site.scale)
