"""The contract of an initialisation: where A and B start, given the base weight and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.spectra.statistics import Calibration, Gradients, OfInputs, Sums


class Start(NamedTuple):
    """The starting factors of one module, rank first. `B is None` says that B starts at zero: no displacement form."""

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "rank out"] | None
    learnt: Mapping[str, Tensor] | None = None
    """Where training goes on, by role, if an earlier one has left the start; what is subtracted is the start still."""


@dataclass(frozen=True, slots=True)
class Site:
    """One module as an initialisation sees it."""

    weight: Float[Tensor, "out in"]
    rank: int
    """All directions, over all experts."""
    experts: int
    scale: float | Float[Tensor, " rank"]
    """s; of every direction where experts differ in it."""
    generator: torch.Generator
    """The run's own, derived from its seed and the module's name."""
    statistics: Sums | None = None
    """What `DataDriven.statistic` asked for, of this module."""
    module: str = ""
    """Its dotted name."""


class Triplets(NamedTuple):
    """Singular triplets of a matrix at chosen indices of the descending spectrum: W ~ sum_i sigma_i u_i v_i^T."""

    u: Float[Tensor, "kept out"]
    sigma: Float[Tensor, " kept"]
    v: Float[Tensor, "kept in"]


@runtime_checkable
class Init(Protocol):
    """One frozen dataclass per kind of start."""

    def indices(self, site: Site) -> Int[Tensor, " kept"] | None:
        """Which singular triplets of the weight it needs (in the order of the directions); None: none."""
        ...

    def __call__(self, site: Site, triplets: Triplets | None) -> Start: ...


@runtime_checkable
class DataDriven(Protocol):
    """What an initialisation has beside that if it looks at the run's training data."""

    @property
    def calibration(self) -> Calibration:
        """Which items it looks at."""
        ...

    def statistic(self) -> OfInputs | Gradients:
        """What it asks to know of each adapted module."""
        ...

    def matrix(self, site: Site) -> Float[Tensor, "rows columns"]:
        """The matrix whose singular triplets `indices` counts, in place of the weight."""
        ...

    def largest_rank(self, out_features: int, in_features: int) -> int:
        """The most directions that it can start in a module."""
        ...


@runtime_checkable
class Brought(Protocol):
    """What an initialisation has beside that if it brings factors that were trained before, with their own rank and
    scale in each module."""

    def require(self, structure: Any, rank: int | None, base: Mapping[str, tuple[int, int]]) -> None:
        """Refuse a structure, a rank or targets ((out, in) by name) that its factors are not of."""
        ...

    def rank(self, module: str) -> int:
        """Directions in one module; 0: it has nothing there, and the module gets no adapter."""
        ...

    def scale(self, module: str) -> float:
        """s of one module, in place of the scaling's."""
        ...
