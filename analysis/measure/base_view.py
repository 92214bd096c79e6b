"""One base weight as the measures see it: its singular vectors that are kept, and random bases for all adapters."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.method.seeds import generator
from ablora.spectra.library import Library
from ablora_analysis.measure.projection import Frames, norm_in_frames, random_frames

AGAINST = ("top", "bottom", "random")
CHECKED = 16
"""At most so many top singular vectors of W0 + dW are looked at for intruders (arXiv:2410.21228 looks at 10)."""
KEPT_PER_CHECKED = 4
"""For each of them so many of W0's top singular vectors are kept: an update that moves one of W0's own directions up
the order brings no intruder."""
_FLOAT64_BELOW = 2**22
"""Larger weights are multiplied in float32: a 7 B model's would take 0.4 GiB each."""


class Pairs(NamedTuple):
    """Some of W0's singular pairs, one a row."""

    u: Float[Tensor, "r out"]
    v: Float[Tensor, "r in"]


class BaseView:
    """A weight, decomposed once; `rank` is the most directions that will be asked for."""

    def __init__(self, name: str, weight: Float[Tensor, "out in"], rank: int, library: Library):
        self.name, self.shape = name, (weight.shape[0], weight.shape[1])
        h = min(self.shape)
        self.rank = min(rank, h)
        self._order = torch.randperm(h, generator=generator("random directions", name))
        wanted = [self._kept_indices(self.rank), *map(self.indices, AGAINST)]
        self._spectrum = library.spectrum(weight, torch.cat(wanted))
        self.sigma = self._spectrum.sigma.double()
        self.norm = float(self.sigma.norm())
        self.W = weight.to(torch.float64 if weight.numel() < _FLOAT64_BELOW else torch.float32)
        self._random_norms: dict[int, float] = {}
        self._frames: dict[int, Frames] = {}

    def indices(self, against: str) -> Int[Tensor, " r"]:
        """Which of W0's triplets (0 the largest) `against` names: the largest, the smallest first, or any."""
        h = len(self._order)
        match against:
            case "top":
                return torch.arange(self.rank)
            case "bottom":
                return h - 1 - torch.arange(self.rank)
            case _:
                return self._order[: self.rank]

    def pairs(self, against: str) -> Pairs:
        return self._pairs(self.indices(against))

    def kept(self, rank: int) -> Pairs:
        """The singular pairs among which an adapter of this rank is looked for: W0's top ones and its `rank` last."""
        return self._pairs(self._kept_indices(rank))

    def _kept_indices(self, rank: int) -> Int[Tensor, " kept"]:
        h = len(self._order)
        top = min(max(rank, KEPT_PER_CHECKED * min(rank, CHECKED)), h)
        return torch.cat([torch.arange(top), torch.arange(max(h - rank, top), h)])

    def _pairs(self, indices: Int[Tensor, " wanted"]) -> Pairs:
        at = self._spectrum.positions(indices)
        assert at is not None, f"{self.name}: the library keeps what was asked for"
        return Pairs(self._spectrum.u[at].double(), self._spectrum.v[at].double())

    def frames(self, rank: int) -> Frames:
        if rank not in self._frames:
            self._frames[rank] = random_frames(*self.shape, rank, self.name)
        return self._frames[rank]

    def random_norm(self, rank: int) -> float:
        """||U^T W0 V||_F for random U and V of `rank` directions, root mean square over the frames."""
        if rank not in self._random_norms:
            self._random_norms[rank] = norm_in_frames(self.frames(rank), self.W)
        return self._random_norms[rank]
