"""The contract of a scaling: the factor s in `y = W0 x + s B A x`, a function of a module's shape alone."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Scaling(Protocol):
    """One frozen dataclass per closed form."""

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        """s of a module (out, in) whose pairs, or whose experts each, have `rank` directions."""
        ...
