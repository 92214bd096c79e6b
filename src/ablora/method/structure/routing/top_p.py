"""As many experts as it takes to hold a share of the probability."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._base import Frozen, Params
from ablora.method.structure.routing._base import Routed
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class TopP:
    """Give each token its likeliest experts until together they hold probability `top_p`, weights renormalised.

    Experts in descending order of p; one is chosen while those before it sum to less than top_p: at least one always,
    all at top_p = 1.  w = p over the chosen, over its sum.

    Source: arXiv:2403.07652 section 3.1 (the rule); the routing ablation of arXiv:2502.16894v4, where top_p is 0.25.
    Differs: weights are renormalised, as the expected weight 1/E of a start asks; TUDB-Labs/MoE-PEFT@40f8cb7 (mixlora,
        dynamic) leaves them as they are. What GOAT's ablation did is not in its released code.
    """

    revision: ClassVar[int] = 1
    top_p: float

    def __post_init__(self) -> None:
        check(0 < self.top_p <= 1, "top_p", self.top_p, "a probability above 0 and up to 1")

    def group(self) -> Hashable:
        return "top_p"

    def check_experts(self, experts: int) -> None:
        return None

    def extra(self, in_features: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def count_extra(self, in_features: int) -> int:
        return 0

    def constants(self, experts: int) -> dict[str, Tensor]:
        return {"top_p": torch.full((1,), self.top_p)}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        p: Float[Tensor, "tokens experts"],
    ) -> Routed:
        top, index = p.detach().sort(dim=-1, descending=True)
        before = top.cumsum(-1) - top
        taken = (before < frozen["top_p"].to(p.dtype)).to(p.dtype)
        chosen = torch.zeros_like(p).scatter(-1, index, taken) * frozen["present"].to(p.dtype)
        weights = p * chosen
        return Routed(weights / weights.sum(-1, keepdim=True), chosen, p)
