"""The contract of an initialisation: where A and B start, given the base weight and what is known of it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Start(NamedTuple):
    """The starting factors of one module, rank first. `B is None` says that B starts at zero: no displacement form."""

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "rank out"] | None


@dataclass(frozen=True, slots=True)
class Site:
    """One module as an initialisation sees it."""

    weight: Float[Tensor, "out in"]
    rank: int
    """All directions, over all experts."""
    experts: int
    scale: float
    generator: torch.Generator
    """The run's own, derived from its seed and the module's name."""


class Triplets(NamedTuple):
    """Singular triplets of a weight at chosen indices of the descending spectrum: W ~ sum_i sigma_i u_i v_i^T."""

    u: Float[Tensor, "rank out"]
    sigma: Float[Tensor, " rank"]
    v: Float[Tensor, "rank in"]


@runtime_checkable
class Init(Protocol):
    """One frozen dataclass per kind of start."""

    def indices(self, site: Site) -> Int[Tensor, " rank"] | None:
        """Which singular triplets of the weight it needs (in the order of the directions); None: none."""
        ...

    def __call__(self, site: Site, triplets: Triplets | None) -> Start: ...
