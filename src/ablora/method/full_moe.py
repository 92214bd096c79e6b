"""Full fine-tuning of a mixture: what mixtures of low-rank experts are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors
from ablora.method.structure.full_experts import FullExperts
from ablora.spec import LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class FullMoE:
    """Every adapted layer becomes a mixture of E copies of its weight ("upcycling"), all trained, and so is the router.

    p = softmax(G x),  w = what the routing makes of p (rows sum to 1)
    y = sum_e w_e W_e x + b = W0 x + b + sum_e w_e D_e x,   W_e = W0 + D_e

    D (E, m, n) starts at zero and is what is trained: dL/dD_e = dL/dW_e = sum_t w_te delta_t x_t^T, so an optimizer's
    step of D_e is its step of W_e. G (E, n), routing and balance loss as in `experts`. With one expert this is `full`
    with `part=targets`. It has no scaling, no start and no rank (`rank` is null whatever was asked), and
    `adapter.dropout` has nothing to drop.

    All experts see all tokens, in one product: E m n per token, where a program that gathers the tokens of an expert
    has k m n; min(m, n) E numbers per token are kept for backward. A run holds 16 E m n bytes per layer with AdamW in
    float32 (D, its gradient, two moments), in every run of a pack.

    Source: arXiv:2502.16894v4, whose "Full FT MoE" is the upper bound of its tables; its released code has none.
        Upcycling: arXiv:2212.05055 section 3.
    Differs: weight decay pulls W_e to W0 and not to 0; a mixture in every adapted layer, as GOAT has them, where
        upcycling copies a whole MLP; a small step is not lost in the size of W0.
    """

    has_rank: ClassVar[bool] = False
    packs: ClassVar[bool] = True
    name: str = field(metadata=LABEL)
    structure: FullExperts

    @property
    def split_matters(self) -> bool:
        return self.structure.split_matters

    def groups(self, roles: Mapping[str, list[Parameter]], lr: float) -> list[dict[str, Any]]:
        return [{"params": parameters, "lr": lr} for parameters in roles.values()]

    def step(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, Factors]) -> dict[str, float]:
        optimizer.step()
        return {}

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        self.structure.after_step(modules, state, step, max_steps)
