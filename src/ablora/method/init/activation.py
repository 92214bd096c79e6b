"""EVA's start: A spans what the data's inputs vary in."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.spec import check
from ablora.spectra.statistics import Calibration, Moments, Sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """Start A from the first r principal components of the module's inputs, B at zero: the model is the base.

    C = E[x x^T] - E[x] E[x]^T over T positions, with eigenvectors v_i, eigenvalues descending; A_i = v_i, or whitened
    v_i / sqrt(S_i), S_i = sqrt(T eigenvalue_i) the singular value of the centred inputs. Signs: the largest entry of
    v_i is positive. The share of variance that direction i explains is eigenvalue_i / trace C.

    Source: arXiv:2410.07170; ml-jku/EVA@a5ac24b; huggingface/peft 0.21.2 tuners/lora/eva.py,
        utils/incremental_pca.py (centred, which the paper's text does not say).
    Differs: every module has the run's rank, which is EVA at rho = 1; the redistribution of ranks (rho > 1) is not
        here. One exact pass over all chosen samples, where the sources update a component at a time until it settles
        (tau), skip small batches, and count S_i once per pass. PEFT's whitening divides twice where layers share an
        input; ours once.
    """

    revision: ClassVar[int] = 1
    whiten: bool
    positions: Literal["answer", "all"]
    """The inputs that count: at the answers' tokens (the sources: those with a label), or at all."""
    calibration: Calibration

    def statistic(self) -> Moments:
        return Moments(positions=self.positions)

    def largest_rank(self, out_features: int, in_features: int) -> int:
        return min(out_features, in_features)

    def indices(self, site: Site) -> Int[Tensor, " rank"]:
        return torch.arange(site.rank)

    def matrix(self, site: Site) -> Float[Tensor, "in in"]:
        """C, whose triplets are asked for: its singular vectors are its eigenvectors."""
        assert site.statistics is not None
        return self.covariance(site.statistics)

    def covariance(self, sums: Sums) -> Float[Tensor, "in in"]:
        """C from the inputs' moments."""
        count, total, square = (sums[name] for name in ("count", "total", "square"))
        mean = total / count
        return square / count - torch.outer(mean, mean)

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        assert triplets is not None
        assert site.statistics is not None
        sigma, count = triplets.sigma, site.statistics["count"]
        smallest = 1e-12 * site.statistics["square"].trace() / count  # below it a direction is rounding
        found = int((sigma > smallest).sum())
        legal = f"samples whose inputs vary in at least {site.rank} directions in every module ({found} in one)"
        check(found == site.rank, "method.init.calibration.samples", self.calibration.samples, legal)
        return Start(A=triplets.u / (count * sigma).sqrt().sqrt()[:, None] if self.whiten else triplets.u, B=None)
