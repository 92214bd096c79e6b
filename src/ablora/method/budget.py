"""The rank at which a method has as many trainable parameters as another."""

from collections.abc import Iterable
from typing import NamedTuple


class Sized(NamedTuple):
    """A rank and the trainable parameters there."""

    rank: int
    parameters: int


def nearest(target: int, sizes: Iterable[Sized]) -> Sized:
    """The size whose parameters are nearest the target; of two that are as near, the smaller one."""
    return min(sizes, key=lambda size: (abs(size.parameters - target), size.parameters, size.rank))


def around(target: int, sizes: Iterable[Sized]) -> list[Sized]:
    """The greatest size of at most the target and the least one over it, as far as there are such."""
    ordered = sorted(sizes, key=lambda size: (size.parameters, size.rank))
    below = [size for size in ordered if size.parameters <= target]
    over = [size for size in ordered if size.parameters > target]
    return [*below[-1:], *over[:1]]
