"""The contract of an update: how gradients become steps, beyond the optimizer's own rule."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.nn import Parameter

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

    def transform(self, modules: Mapping[str, Factors], experts: int) -> None:
        """Change a run's gradients in place, after clipping and right before the optimizer's step."""
        ...
