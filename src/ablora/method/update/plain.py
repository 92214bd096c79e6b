"""One learning rate for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn import Parameter
from torch.optim import Optimizer

from ablora.method.structure._base import Factors


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """Give every trainable parameter the run's learning rate and its gradient as it is.

    Source: arXiv:2106.09685 section 5 (AdamW on A and B alike).
    """

    revision: ClassVar[int] = 1

    def trains(self, role: str) -> bool:
        return True

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        return [{"params": [p for parameters in roles.values() for p in parameters], "lr": lr}]

    def step(self, optimizer: Optimizer, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        optimizer.step()
        return {}
