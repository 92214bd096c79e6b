"""The s that a run had, and the s that each closed form gives its modules.

Source: LoRA arXiv:2106.09685 section 4.1; rsLoRA arXiv:2312.03732 theorem 3.2; GOAT arXiv:2502.16894 theorem 3.5; PiSSA
arXiv:2404.02948 and MiLoRA arXiv:2406.09044, whose alpha is r.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ablora.method.scaling._base import Scaling
from ablora.method.scaling.alpha_over_r import AlphaOverR
from ablora.method.scaling.alpha_over_sqrt_r import AlphaOverSqrtR
from ablora.method.scaling.constant import Constant
from ablora.method.scaling.goat import GoatScaling
from ablora.spec import BadInput
from ablora.store.atomic import Corrupted
from ablora.store.run_folder import RunFolder
from ablora.tree import build
from ablora_analysis.table import EXACT

FORMULAS: Mapping[str, Scaling] = {
    "16/r": AlphaOverR(alpha=16.0),
    "16/√r": AlphaOverSqrtR(alpha=16.0),
    "√(3n/r)": GoatScaling(eta=1.0),
    "1": Constant(value=1.0),
}
"""The closed forms at the constants of conf/method/scaling; another alpha lies log2(alpha / 16) to the side."""


Shape = tuple[int, int]
"""(out, in) of a module."""


class Realised(NamedTuple):
    """s over a run's modules."""

    s: float
    """Their geometric mean: modules count alike on the axis, which is logarithmic."""
    spread: float
    """The greatest over the least: 1 where all modules have one s."""


def realised(folder: RunFolder) -> Realised | None:
    """What result.json recorded; None for a method without s."""
    modules = folder.read_result().get("modules")
    if not isinstance(modules, Mapping):
        return None
    found = [_parts(record.get("scaling")) for record in modules.values()]
    own = [s for parts in found for s in parts if s > 0]
    means = [geometric_mean(parts) for parts in found if parts and min(parts) > 0]
    return Realised(geometric_mean(means), max(own) / min(own)) if means else None


def _parts(s: Any) -> list[float]:
    """One s, one per expert, or none."""
    if s is None:
        return []
    return [float(part) for part in s] if isinstance(s, list | tuple) else [float(s)]


def specified(folder: RunFolder, shapes: Sequence[Shape]) -> float | None:
    """s as the run's own scaling gives it: of a run that diverged, which recorded none."""
    rule, rank = _scaling(folder)
    return None if rule is None or not shapes else _over(shapes, rule, rank)


def closed_forms(folder: RunFolder, shapes: Sequence[Shape]) -> dict[str, float]:
    """Each formula's s on a run's own modules and rank, r that of one expert; none for a method without."""
    rule, rank = _scaling(folder)
    if rule is None or not shapes:
        return {}
    return {name: _over(shapes, formula, rank) for name, formula in FORMULAS.items()}


def _scaling(folder: RunFolder) -> tuple[Scaling | None, int]:
    """The run's scaling, and the rank of one expert; None where it has none, or its class is not here."""
    tree = folder.read_tree()
    method, rank = tree["method"], tree.get("rank")
    if rank is None or "scaling" not in method:
        return None, 0
    try:
        return build(method["scaling"]), rank // build(method["structure"]).experts
    except BadInput:
        return None, 0


def _over(shapes: Sequence[Shape], rule: Scaling, rank: int) -> float:
    return geometric_mean(rule(*shape, rank) for shape in shapes)


def shapes_of(folder: RunFolder) -> list[Shape]:
    """(out, in) of every adapted module, from the factors' own shapes; no number is read. None without the file."""
    path = folder.adapter / EXACT
    if not path.exists():
        return []
    try:
        with safe_open(path, "np") as file:
            found = set(file.keys())
            modules = sorted(name.removesuffix(".A") for name in found if name.endswith(".A"))
            return [
                (file.get_slice(f"{module}.B").get_shape()[1], file.get_slice(f"{module}.A").get_shape()[1])
                for module in modules
                if f"{module}.B" in found
            ]
    except SafetensorError as error:
        raise Corrupted(str(path), str(error), "a whole safetensors file with the adapter's factors") from error


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
