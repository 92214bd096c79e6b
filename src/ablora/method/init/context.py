"""CorDA's start: singular triplets of the weight as the data's inputs meet it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced
from ablora.spec import check
from ablora.spectra.statistics import Calibration, Normalised, Sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Start from the triplets of W C, C the inputs' second moment: what the data uses most (ipm) or least (kpm).

    C = mean over samples of X^T X / max(X)^2,   C' = C + damping mean(diag C) I,   W C' = U S V^T, S descending,
    s B0 A0 = U_i S_i (V_i^T C'^-1) over the r largest i (ipm: learn the new task) or smallest (kpm: keep knowledge),
    split evenly (see `balanced`). All h triplets together are W.

    Source: arXiv:2406.05223; iboing/CorDA@baffb03 cordalib/decomposition.py (there IPA and KPA); huggingface/peft
        0.21.2 tuners/lora/corda.py.
    Differs: in float64, where the damped C can always be inverted; the sources work in float32 and double the damping
        until the inverse is good to 0.05. Samples are whole training items of the run, in place of 256 windows of 2048
        tokens (of another corpus, for kpm). The base weight stays as it is.
    """

    revision: ClassVar[int] = 1
    part: Literal["ipm", "kpm"]
    damping: float
    calibration: Calibration

    def __post_init__(self) -> None:
        check(self.damping > 0, "damping", self.damping, "a positive number; the paper's code has 0.01")

    def statistic(self) -> Normalised:
        return Normalised()

    def largest_rank(self, out_features: int, in_features: int) -> int:
        return min(out_features, in_features)

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        h = min(site.weight.shape)
        return torch.arange(site.rank) if self.part == "ipm" else torch.arange(h - site.rank, h)

    def matrix(self, site: Site) -> Float[Tensor, "out in"]:
        """W C', whose triplets are asked for."""
        return site.weight.detach().to("cpu", torch.float64) @ self._of(site)

    def moment(self, sums: Sums) -> Float[Tensor, "in in"]:
        """C', the damped second moment."""
        moment = sums["square"] / sums["count"]
        return moment + self.damping * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)

    def _of(self, site: Site) -> Float[Tensor, "in in"]:
        assert site.statistics is not None
        return self.moment(site.statistics)

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        v = torch.linalg.solve(self._of(site), triplets.v.mT).mT  # C' is symmetric
        return balanced(triplets._replace(v=v), site.scale)
