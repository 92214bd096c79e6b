"""Runs that trained whole weights: updates are matrices."""

from collections.abc import Mapping, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from ablora.method.targets import find_targets
from ablora.models.base import skeleton
from ablora.store.tensor_file import TensorFile, require_names, require_shape
from ablora_analysis.measure import dense
from ablora_analysis.measure.adapters import WHOLE, Adapter, Part, require_module
from ablora_analysis.measure.base_weights import BaseWeights

Gates = Mapping[str, Float[Tensor, " experts"]]


def open_whole(run: str, file: TensorFile, base: BaseWeights, targets: str | tuple[str, ...]) -> Adapter:
    """What full fine-tuning changed in the layers that `targets` names; the other weights are not measured."""
    modules = list(find_targets(skeleton(base.folder), targets))
    require_names(file, {*file.shapes, *(f"{module}.weight" for module in modules)})
    for module in modules:
        shape = require_module(base, file.path, module)
        stored = (shape[1], shape[0]) if base.turned(module) else shape
        require_shape(file, f"{module}.weight", stored, f"as the base {base.folder} has it")
    return _adapter(run, file, base, modules, partial(_changed, file, base), file.sha256)


def require_experts(file: TensorFile, base: BaseWeights, experts: int) -> list[str]:
    """The modules of a mixture of fully trained experts; every tensor has the shape that its base makes necessary."""
    modules = [name.removesuffix(".D") for name in file.shapes if name.endswith(".D")]
    for module in modules:
        shape = require_module(base, file.path, module)
        require_shape(file, f"{module}.D", (experts, *shape), f"as the base {base.folder} says")
    return modules


def open_experts(
    run: str, file: TensorFile, base: BaseWeights, modules: Sequence[str], gates: Gates | None, content: str
) -> Adapter:
    """What the experts learnt, dW_e = D_e, and what they add on average."""
    return _adapter(run, file, base, modules, partial(_experts, file, gates), content)


def _adapter(run: str, file: TensorFile, base: BaseWeights, modules: Sequence[str], parts: partial, content: str):
    shapes = {module: require_module(base, file.path, module) for module in modules}
    for module, shape in shapes.items():
        dense.require_small(f"{file.path}: {module}", *shape)
    ranks = {module: dense.compared(*shape) for module, shape in shapes.items()}
    return Adapter(id=run, base=base, ranks=ranks, content=content, parts=parts, start=lambda module: None)


def _changed(file: TensorFile, base: BaseWeights, module: str) -> dict[str, Part]:
    (tensor,) = file.read([f"{module}.weight"]).values()
    learnt = (tensor.mT if base.turned(module) else tensor).double() - base.weight(module).double()
    return {WHOLE: Part(dense.update(learnt), dense.compared(*learnt.shape), "")}


def _experts(file: TensorFile, gates: Gates | None, module: str) -> dict[str, Part]:
    (D,) = file.read([f"{module}.D"]).values()
    return dense.parts(D, None if gates is None else gates[module])
