"""What a method comes to on a model, from shapes alone: checked and counted before anything is queued."""

from functools import cache
from pathlib import Path

from ablora.method.attach import require_rank
from ablora.method.lowrank import LowRank
from ablora.method.structure._base import Shape, inward_rank
from ablora.method.targets import find_targets
from ablora.models.base import skeleton
from ablora.spec import RunSpec, check


@cache
def _shapes(folder: Path, targets: str | tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {name: (m.out_features, m.in_features) for name, m in find_targets(skeleton(folder), targets).items()}


def check_cell(spec: RunSpec) -> int:
    """The number of trainable parameters of a run: sum over modules of r (m + n), less what the update
    does not train, plus what the structure adds.

    Refuses (BadInput) targets that match nothing, a rank that is absent, over a weight's smaller side, or that the
    structure cannot divide.
    """
    method: LowRank = spec.method
    if spec.rank is None:
        check(False, "rank", None, "an integer: this method has a rank")
    assert spec.rank is not None
    total = 0
    for name, (out_features, in_features) in _shapes(spec.model.folder, spec.adapter.targets).items():
        shape = Shape(out_features, in_features, spec.rank)
        require_rank(name, shape, method)
        sizes = {"A": inward_rank(method.structure, spec.rank) * in_features, "B": spec.rank * out_features}
        total += sum(size for role, size in sizes.items() if method.update.trains(role))
        total += method.structure.count_extra(shape)
    return total
