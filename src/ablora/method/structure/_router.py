"""What all mixtures' routers have in common: their choices, and where they start."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure.routing._base import Routing
from ablora.method.structure.routing.top_k import TopK
from ablora.spec import check


def rule_of(top_k: int | None, routing: Any) -> Routing:
    """How a token finds its experts: the `top_k` likeliest, or by a routing that decides itself."""
    return routing if top_k is None else TopK(top_k=top_k)


def check_router(top_k: int | None, routing: Any, router_std: float | None, routed: int) -> None:
    """Refuse (BadInput) choices of a router to `routed` experts that contradict each other."""
    known = routing is None or isinstance(routing, Routing)
    check(known, "routing", routing, "null, or a mapping whose _target_ is of ablora.method.structure.routing")
    legal = "a number of experts, or null beside a `routing` that decides itself: one of the two"
    check((top_k is None) != (routing is None), "top_k", top_k, legal)
    rule_of(top_k, routing).check_experts(routed)
    check(router_std is None or router_std > 0, "router_std", router_std, "null, or above 0")


def start_router(
    routed: int, in_features: int, std: float | None, generator: torch.Generator
) -> Float[Tensor, "routed in"]:
    """G at N(0, std^2), or (null) U(-1/sqrt(n), 1/sqrt(n)). Never at zero: that would send every token to the same k
    experts, and E[w] would not be 1/E."""
    router, bound = torch.empty(routed, in_features), 1 / math.sqrt(in_features)
    if std is None:
        return router.uniform_(-bound, bound, generator=generator)
    return router.normal_(0.0, std, generator=generator)
