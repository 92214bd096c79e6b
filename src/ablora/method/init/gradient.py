"""LoRA-GA's start: singular vectors of the full gradient."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.spec import check
from ablora.spectra.statistics import Calibration, Gradients

Size = Float[Tensor, "_ 1"]
"""A factor of each direction's vector, or one of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """Start where the first step of the pair comes closest to the first step of full fine-tuning.

    G = mean over micro-batches of dL/dW = U S V^T. A0 takes rows of V^T, B0 columns of U, r each out of the first 2r:
      ArB2r: A0 the first r, B0 the second (the paper's);  A2rBr: the other way;  ArBr: A0 the odd, B0 the even, from 0.
    paper:  A0 = c V^T, B0 = c U, so A0 A0^T = B0^T B0 = c^2 I, with
      stable: c = m^(1/4) / sqrt(gamma)     unit: 1     gd: 1/s     weight: mean over i < r of sqrt(sigma_i(W) / s)
    peft:   A0 = a V^T, B0 = b U S, with
      stable: a = 1, b = m^(1/4) / sqrt(gamma)     unit: 1, 1    gd: 1/s, 1/s     weight: 1, sigma_0(W) / (B0's first S)

    Source: arXiv:2407.05000 section 3; Outsider565/LoRA-GA@89af7de peft/src/peft/tuners/lora/layer.py (lora_ga_init);
        form peft: huggingface/peft 0.21.2 tuners/lora/layer.py (lora_ga_init).
    Differs: the exact decomposition in float64, where the sources take a random one (svd_lowrank, q = 4r), so a start
        can be made again; signs are fixed (see `spectra`), for those of u and v do not cancel here. Without the
        sources' optional norm_clip. The base weight stays as it is.
    """

    revision: ClassVar[int] = 1
    form: Literal["paper", "peft"]
    direction: Literal["ArB2r", "A2rBr", "ArBr"]
    size: Literal["stable", "unit", "gd", "weight"]
    gamma: float
    """Of the stable size; the paper has 16, its code 64 for T5."""
    batch: int
    """Items per micro-batch of the gradient."""
    calibration: Calibration

    def __post_init__(self) -> None:
        check(self.gamma > 0, "gamma", self.gamma, "a positive number; the paper's is 16")
        check(self.batch >= 1, "batch", self.batch, "an integer of at least 1")

    def statistic(self) -> Gradients:
        return Gradients(batch=self.batch)

    def largest_rank(self, out_features: int, in_features: int) -> int:
        return min(out_features, in_features) // 2

    def indices(self, site: Site) -> Int[Tensor, " twice_rank"]:
        return torch.arange(2 * site.rank)

    def matrix(self, site: Site) -> Float[Tensor, "out in"]:
        """G, whose triplets are asked for."""
        assert site.statistics is not None
        return site.statistics["gradient"] / site.statistics["count"]

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        r = site.rank
        for_a, for_b = {
            "ArB2r": (slice(r), slice(r, None)),
            "A2rBr": (slice(r, None), slice(r)),
            "ArBr": (slice(1, None, 2), slice(0, None, 2)),
        }[self.direction]
        a, b = self._paper(site) if self.form == "paper" else self._peft(site, triplets.sigma[for_b])
        return Start(A=a * triplets.v[for_a], B=b * triplets.u[for_b])

    def _paper(self, site: Site) -> tuple[Size, Size]:
        s = _scale(site)
        c = {
            "stable": lambda: self._stable(site),
            "unit": lambda: torch.ones_like(s),
            "gd": lambda: 1 / s,
            "weight": lambda: (_sigma(site)[: site.rank] / s).sqrt().mean(1, keepdim=True),
        }[self.size]()
        return c, c

    def _peft(self, site: Site, sigma: Float[Tensor, " rank"]) -> tuple[Size, Size]:
        s = _scale(site)
        one = torch.ones_like(s)
        a, b = {
            "stable": lambda: (one, self._stable(site)),
            "unit": lambda: (one, one),
            "gd": lambda: (1 / s, 1 / s),
            "weight": lambda: (one, _sigma(site)[:1, None] / sigma[0]),
        }[self.size]()
        return a, b * sigma[:, None]

    def _stable(self, site: Site) -> Size:
        return torch.full((1, 1), site.weight.shape[0] ** 0.25 / self.gamma**0.5, dtype=torch.float64)


def _scale(site: Site) -> Size:
    return torch.as_tensor(site.scale, dtype=torch.float64).reshape(-1, 1)


def _sigma(site: Site) -> Float[Tensor, " h"]:
    return torch.linalg.svdvals(site.weight.detach().to("cpu", torch.float64))
