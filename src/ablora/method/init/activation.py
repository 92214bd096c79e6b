"""EVA's start: A spans what the data's inputs vary in."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._redistribution import share_out
from ablora.spec import check
from ablora.spectra.statistics import Calibration, Moments, Sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """Start A from the first r principal components of the module's inputs, B at zero: the model is the base.

    C = E[x x^T] - E[x] E[x]^T over T positions, with eigenvectors v_i, eigenvalues descending; A_i = v_i, or whitened
    v_i / sqrt(S_i), S_i = sqrt(T eigenvalue_i) the singular value of the centred inputs. Signs: the largest entry of
    v_i is positive. The share of variance that direction i explains is eigenvalue_i / trace C.
    With rho > 1 ranks are redistributed: of all M modules' directions the r M of the largest shares are taken, at most
    round(rho r) in one module; a module may get none and then has no adapter. s is the one of rank r in every module
    (PEFT's adjust_scaling_factors). rho = 1: every module gets r.

    Source: arXiv:2410.07170; ml-jku/EVA@a5ac24b; huggingface/peft 0.21.2 tuners/lora/eva.py,
        utils/incremental_pca.py (centred, which the paper's text does not say).
    Differs: one exact pass over all chosen samples, where the sources update a component at a time until it settles
        (tau), skip small batches, and count S_i once per pass. Of equal shares (q, k and v read one input) the earlier
        module's is taken, where PEFT lets the first have the most and leaves the rest to its sort. Directions in which
        the inputs do not vary are never taken, so fewer than r M may be; nor are more than a weight's smaller side. A
        mixture's module gets them in blocks of one per expert, by the blocks' sums. PEFT's whitening divides twice
        where layers share an input; ours once. With alpha / sqrt(r) PEFT's s changes by sqrt(rank / r); ours does not.
    """

    revision: ClassVar[int] = 1
    whiten: bool
    positions: Literal["answer", "all"]
    """The inputs that count: at the answers' tokens (the sources: those with a label), or at all."""
    calibration: Calibration
    rho: float = field(default=1.0, metadata={"added": True})
    """How many times the run's rank one module may get at most; 1: no redistribution."""

    def __post_init__(self) -> None:
        legal = "a number of at least 1 (1: every module gets the run's rank); PEFT's default is 2"
        check(self.rho >= 1 and math.isfinite(self.rho), "rho", self.rho, legal)

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
        found = self._varied(sigma, site.statistics)
        legal = f"samples whose inputs vary in at least {site.rank} directions in every module ({found} in one); or "
        legal += "method.init.rho=2, which gives such modules fewer"
        check(found == site.rank, "method.init.calibration.samples", self.calibration.samples, legal)
        return Start(A=triplets.u / (count * sigma).sqrt().sqrt()[:, None] if self.whiten else triplets.u, B=None)

    def _varied(self, sigma: Float[Tensor, " k"], sums: Sums) -> int:
        """How many of these eigenvalues are variance; below the bound one is rounding."""
        return int((sigma > 1e-12 * sums["square"].trace() / sums["count"]).sum())

    def most(self, rank: int) -> int:
        return round(self.rho * rank)

    def ranks(self, sites: Mapping[str, Site], sigma: Callable[[Site], Float[Tensor, " h"]]) -> dict[str, int]:
        shares = {name: self._shares(site, sigma) for name, site in sites.items()}
        given = share_out(shares, sum(site.rank // site.experts for site in sites.values()))
        legal = "samples whose inputs vary in some module"
        check(any(given.values()), "method.init.calibration.samples", self.calibration.samples, legal)
        return {name: blocks * sites[name].experts for name, blocks in given.items()}

    def _shares(self, site: Site, sigma: Callable[[Site], Float[Tensor, " h"]]) -> Float[Tensor, " blocks"]:
        """What each block of directions, one per expert, explains of the module's variance."""
        assert site.statistics is not None
        most = min(self.most(site.rank), self.largest_rank(*site.weight.shape))
        variances = sigma(replace(site, rank=most))
        size = site.experts
        blocks = min(most, self._varied(variances, site.statistics)) // size
        return variances[: blocks * size].reshape(blocks, size).sum(1) / variances.sum()
