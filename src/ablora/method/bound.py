"""The most that a method can train where the data decide which module gets which rank."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ablora.method.formula import trained_in
from ablora.method.init._base import DataDriven
from ablora.method.init._redistribution import Redistributes
from ablora.method.lowrank import LowRank
from ablora.method.structure._base import Shape, inward_rank


class Alike(NamedTuple):
    """Modules of one shape, at the run's rank."""

    shape: Shape
    number: int


def at_most(method: LowRank, modules: Sequence[Alike]) -> int:
    """The largest sum over modules of trained parameters that any redistribution of the ranks can give.

    A module's count is concave in its rank (what comes with the first direction, then equal steps), so the steps that
    cost most, as many as there are blocks of directions, add up to it.
    """
    steps = [(cost, alike.number) for alike in modules for cost in _steps(method, alike.shape)]
    left = sum(alike.number * _blocks(method, alike.shape) for alike in modules)
    total = 0
    for cost, number in sorted(steps, reverse=True):
        taken = min(number, left)
        total, left = total + taken * cost, left - taken
    return total


def _steps(method: LowRank, shape: Shape) -> Iterator[int]:
    """What each further block of directions adds in a module, up to the most that it may get."""
    init, rows = method.init, inward_rank(method.structure, shape.rank)
    assert isinstance(init, Redistributes)
    assert isinstance(init, DataDriven)
    most = min(init.most(rows), init.largest_rank(shape.out_features, shape.in_features))
    size = rows // _blocks(method, shape)
    before = 0
    for own in range(size, most + 1, size):
        now = trained_in(method, shape._replace(rank=own * (shape.rank // rows)))
        yield now - before
        before = now


def _blocks(method: LowRank, shape: Shape) -> int:
    """Blocks of directions, one per expert that has rows of its own, at the run's rank."""
    rows = inward_rank(method.structure, shape.rank)
    return rows // method.structure.experts if rows == shape.rank else rows
