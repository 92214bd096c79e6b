"""The rank at which a method has as many trainable parameters as another, or costs as much."""

from collections.abc import Callable, Iterable, Sequence
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


class Reached(NamedTuple):
    """A budget that is no number of parameters, and what the solved rank came to."""

    field: str
    asked: str
    found: str

    def __str__(self) -> str:
        return f"{self.found} of {self.field} {self.asked}"


def largest_within(limit: int, ranks: Sequence[int], size: Callable[[int], int]) -> int | None:
    """The largest rank whose size, which grows with the rank, is at most the limit; None where there is none."""
    low, high = 0, len(ranks)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(ranks[middle]) <= limit else (low, middle)
    return ranks[low - 1] if low else None
