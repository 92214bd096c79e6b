"""Every expert, by its probability."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._base import Frozen, Params
from ablora.method.structure.routing._base import Routed


@dataclass(frozen=True, kw_only=True, slots=True)
class Soft:
    """Give each token all experts, merged by the router's softmax.

    w = p.

    Source: arXiv:2309.05444 equation 2; for-ai/parameter-efficient-moe@e2683fe src/routing.py. HydraLoRA merges its
        heads the same way: arXiv:2404.19245 equation 5; Clin0212/HydraLoRA@afb693b HydraLoRA/peft/tuners/lora.py.
    Differs: nothing known.
    """

    revision: ClassVar[int] = 1

    def group(self) -> Hashable:
        return "soft"

    def check_experts(self, experts: int) -> None:
        return None

    def extra(self, in_features: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def count_extra(self, in_features: int) -> int:
        return 0

    def constants(self, experts: int) -> dict[str, Tensor]:
        return {}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        p: Float[Tensor, "tokens experts"],
    ) -> Routed:
        return Routed(p, frozen["present"].to(p.dtype).expand_as(p), p)
