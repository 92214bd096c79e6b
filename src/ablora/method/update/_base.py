"""The contract of an update: how gradients become steps, beyond the optimizer's own rule."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.nn import Parameter


@runtime_checkable
class Update(Protocol):
    """One frozen dataclass per kind of step."""

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over all parameters, each in exactly one, given them by role (A, B, router, ...)."""
        ...
