"""A method is four choices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.crossings import check_crossings
from ablora.method.structure._base import Factors
from ablora.spec import LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """A low-rank adaptation method: where the factors start, how large their product counts, how they act on a token,
    and how gradients become steps. Named methods are presets of these four and carry no code.

    `name` is a label: two presets that compose to the same four choices are the same run.
    """

    has_rank: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    name: str = field(metadata=LABEL)
    init: Any
    scaling: Any
    structure: Any
    update: Any

    def __post_init__(self) -> None:
        check_crossings(self.init, self.scaling, self.structure, self.update)

    @property
    def split_matters(self) -> bool:
        """Whether the cut into micro-batches changes what is learnt, without dropout."""
        return self.structure.split_matters

    def groups(self, roles: Mapping[str, list[Parameter]], lr: float) -> list[dict[str, Any]]:
        return self.update.groups(roles, lr)

    def step(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, Factors]) -> dict[str, float]:
        return self.update.step(optimizer, modules, self.structure.experts)

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        self.structure.after_step(modules, state, step, max_steps)
