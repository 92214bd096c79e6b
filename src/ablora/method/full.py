"""Full fine-tuning: what low-rank adaptation is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors
from ablora.spec import LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class Full:
    """Every weight is trained: W <- W - lr * step(dL/dW), from the base's W0.

    It has no rank, no scaling and no adapter branch: `rank` is null whatever was asked, `adapter.dropout` has nothing
    to drop, and `adapter.targets` counts with `part=targets` only. Runs as a pack of one.

    Differs: weights are copied in float32 (float64 with `adapter.compute_dtype=float64`) and the model computes in
        that, whatever the base's dtype: bfloat16 weights lose steps below 2^-8 of their size.
    """

    has_rank: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    split_matters: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    name: str = field(metadata=LABEL)
    part: Literal["all", "targets"] = "all"
    """Every parameter of the model, embeddings, norms and head among them; or the weights alone of the layers that
    `adapter.targets` names, which is what a low-rank pair on these layers approximates."""

    def groups(self, roles: Mapping[str, list[Parameter]], lr: float) -> list[dict[str, Any]]:
        return [{"params": parameters, "lr": lr} for parameters in roles.values()]

    def step(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, Factors]) -> dict[str, float]:
        optimizer.step()
        return {}

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        pass
