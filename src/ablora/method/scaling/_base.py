"""The contract of a scaling: the factor s in `y = W0 x + s B A x`, a function of a module's shape alone."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Scaling(Protocol):
    """One frozen dataclass per closed form."""

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        """s of a module (out, in) whose pairs, or whose experts each, have `rank` directions."""
        ...


@runtime_checkable
class PerExpert(Protocol):
    """What a scaling has beside that if the experts of a mixture differ in s."""

    def by_expert(self, s: float, sigma: Float[Tensor, "experts size"]) -> Float[Tensor, " experts"]:
        """s of every expert, from the first one's and the singular values that each starts from."""
        ...
