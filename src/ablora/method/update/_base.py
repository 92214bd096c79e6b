"""The contract of an update: how gradients become steps, beyond the optimizer's own rule."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.nn import Parameter
from torch.optim import Optimizer

from ablora.method.structure._base import Factors


@runtime_checkable
class Update(Protocol):
    """One frozen dataclass per kind of step."""

    def trains(self, role: str) -> bool:
        """Whether tensors of a role (A, B, router, ...) are trained; the others are held still and not counted."""
        ...

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over all trained parameters, each in exactly one, given them by role."""
        ...

    def step(self, optimizer: Optimizer, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        """One step of a run's optimizer from the gradients at hand, after clipping; what it changes them to stays in
        `.grad` until the structure's after-step. Returns what the step's record should say; usually nothing."""
        ...
