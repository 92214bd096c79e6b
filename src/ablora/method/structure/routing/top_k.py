"""The k likeliest experts."""

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
class TopK:
    """Give each token the k experts of highest probability, their weights renormalised.

    w = top-k of p, over its sum: the softmax over the k highest logits.

    Source: arXiv:1701.06538 equations 3-5; Facico/GOAT-PEFT@ef4d21a goat/peta/src/goat/layer.py.
    Differs: nothing known.
    """

    revision: ClassVar[int] = 1
    top_k: int

    def group(self) -> Hashable:
        return "top_k"

    def check_experts(self, experts: int) -> None:
        check(1 <= self.top_k <= experts, "top_k", self.top_k, f"1 to the number of routed experts ({experts})")

    def extra(self, in_features: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def count_extra(self, in_features: int) -> int:
        return 0

    def constants(self, experts: int) -> dict[str, Tensor]:
        return {"slots": torch.ones(self.top_k)}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        p: Float[Tensor, "tokens experts"],
    ) -> Routed:
        slots = frozen["slots"].to(p.dtype)  # one per choice; 0 for those that only pack-mates have
        top, index = p.topk(slots.shape[-1], dim=-1)
        top = top * slots
        top = top / top.sum(-1, keepdim=True)
        blank = torch.zeros_like(p)
        return Routed(blank.scatter(-1, index, top), blank.scatter(-1, index, slots.expand_as(top)), p)
