"""What a method comes to on a model, from shapes alone: checked and counted before anything is queued."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ablora.method.attach import require_rank
from ablora.method.bound import Alike, at_most
from ablora.method.formula import trained_in
from ablora.method.full import Full
from ablora.method.full_moe import FullMoE
from ablora.method.init._base import Brought
from ablora.method.layer import out_in
from ablora.method.lowrank import LowRank
from ablora.method.peft_tuner import Peft
from ablora.method.ranks import data_decide
from ablora.method.structure._base import Shape
from ablora.method.targets import find_targets
from ablora.method.twin import count as count_tuner
from ablora.method.whole_model import places_of
from ablora.models.base import skeleton
from ablora.spec import BadInput, RunSpec


@cache
def _shapes(folder: Path, targets: str | tuple[str, ...]) -> dict[tuple[int, int], tuple[str, int]]:
    """(out, in) of the adapted modules, with the first module's name and how many there are."""
    found: dict[tuple[int, int], tuple[str, int]] = {}
    for name, m in find_targets(skeleton(folder), targets).items():
        first, number = found.get(out_in(m), (name, 0))
        found[out_in(m)] = first, number + 1
    return found


def modules_of(folder: Path, targets: str | tuple[str, ...]) -> int:
    """How many modules are adapted."""
    return sum(number for _, number in _shapes(folder, targets).values())


def check_cell(spec: RunSpec) -> int:
    """The number of trainable parameters of a run; see `count`."""
    if isinstance(spec.method, Peft):
        spec.method.check_run(spec.adapter, spec.model.dtype)
    return count(spec.method, spec.model.folder, spec.adapter.targets, spec.rank)


def count_full(method: Full, folder: Path, targets: str | tuple[str, ...]) -> int:
    """The numbers of all trained weights; a tied one counts once."""
    places = places_of(skeleton(folder), method, targets)
    return sum(getattr(*own[0]).numel() for own in places.values())


def count(
    method: Full | FullMoE | Peft | LowRank, folder: Path, targets: str | tuple[str, ...], rank: int | None
) -> int:
    """The number of trainable parameters of a method; of a low-rank one the sum over modules of r (m + n), less what
    the update does not train, plus what the structure adds; where the data decide the ranks, as if they were equal
    (see `bound_of`).

    Refuses (BadInput) targets that match nothing, and a rank that is absent, over a weight's smaller side or that the
    structure cannot divide.
    """
    match method:
        case Full():
            return count_full(method, folder, targets)
        case Peft():
            return count_tuner(method, folder, targets)
        case FullMoE():
            sizes = _shapes(folder, targets).items()
            return sum(number * method.structure.count_extra(Shape(*size, 0)) for size, (_, number) in sizes)
    if isinstance(method.init, Brought):
        return _count_brought(method, method.init, folder, targets, rank)
    if rank is None:
        raise BadInput("rank", None, "an integer: this method has a rank")
    total = 0
    for (out_features, in_features), (name, number) in _shapes(folder, targets).items():
        shape = Shape(out_features, in_features, rank)
        require_rank(name, shape, method)
        total += number * trained_in(method, shape)
    return total


def bound_of(spec: RunSpec) -> int | None:
    """The most trainable parameters that a run can have whose data decide its modules' ranks; None: `count` is exact.

    On pico and the arithmetic set EVA came to 116,416 where equal ranks of 8 have 116,736 and the bound is 147,456;
    at 40 to 606,080, 583,680 and 737,280.
    """
    if spec.rank is None or not data_decide(spec.method, spec.rank):
        return None
    found = _shapes(spec.model.folder, spec.adapter.targets)
    return at_most(spec.method, [Alike(Shape(*size, spec.rank), number) for size, (_, number) in found.items()])


def _count_brought(
    method: LowRank, init: Brought, folder: Path, targets: str | tuple[str, ...], rank: int | None
) -> int:
    """The same where each module has the rank of what was trained before."""
    modules = {name: out_in(m) for name, m in find_targets(skeleton(folder), targets).items()}
    init.require(method.structure, rank, modules)
    return sum(trained_in(method, Shape(*modules[name], own)) for name in modules if (own := init.rank(name)))


def ranks(folder: Path, targets: str | tuple[str, ...]) -> Iterator[int]:
    """Every rank that the smaller sides of all adapted weights hold, ascending."""
    yield from range(1, 1 + min(min(sides) for sides in _shapes(folder, targets)))
