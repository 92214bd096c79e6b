"""The experts that pass a threshold, which the token sets itself."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._base import Frozen, Params
from ablora.method.structure._product import COLUMNS, product
from ablora.method.structure.routing._base import Routed
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """Give each token the experts whose probability reaches its threshold tau(x), by how far they pass it.

    tau(x) = tau_max sigmoid(v x + c),   a = p - tau,   chosen: a >= 0,   w = a over the chosen, over its sum
    v (1, n) and c (1,) are trained; tau_max is at most 1/E, so that the likeliest expert always passes. The choice
    carries no gradient; w does, to the router and to tau.

    balance_on   what the balance loss averages beside the load f_i
      probability  p: the Switch loss, as the paper writes it
      excess       p - tau: as the code does, which also pushes thresholds up

    Source: arXiv:2405.00361 equations 5-8; zefang-liu/AdaMoLE@5e8599a src/adamole/layer.py.
    Differs: where all that pass do so by exactly 0, the weights are 0 as in the reference.
    """

    revision: ClassVar[int] = 1
    max_threshold: float | None
    """tau_max; null: 1/E."""
    balance_on: Literal["probability", "excess"]

    def __post_init__(self) -> None:
        legal = "null (1 / experts), or a positive number of at most 1 / experts"
        check(self.max_threshold is None or self.max_threshold > 0, "max_threshold", self.max_threshold, legal)

    def group(self) -> Hashable:
        return "threshold", self.balance_on

    def check_experts(self, experts: int) -> None:
        legal = f"null, or at most 1 / experts ({1 / experts:g}): above it a token might get no expert"
        fits = self.max_threshold is None or self.max_threshold <= 1 / experts
        check(fits, "max_threshold", self.max_threshold, legal)

    def extra(self, in_features: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(in_features)
        return {
            "threshold": torch.empty(1, in_features).uniform_(-bound, bound, generator=generator),
            "threshold_bias": torch.empty(1).uniform_(-bound, bound, generator=generator),
        }

    def count_extra(self, in_features: int) -> int:
        return in_features + 1

    def constants(self, experts: int) -> dict[str, Tensor]:
        return {"max_threshold": torch.full((1,), self.max_threshold or 1 / experts, dtype=torch.float64)}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        p: Float[Tensor, "tokens experts"],
    ) -> Routed:
        raw = _logit(x.to(p.dtype), params["threshold"].to(p.dtype), params["threshold_bias"].to(p.dtype))
        excess = p - frozen["max_threshold"].to(p.dtype) * _sigmoid(raw)
        present = frozen["present"].to(p.dtype)
        chosen = (excess.detach() >= 0).to(p.dtype) * present
        kept = excess * chosen
        total = kept.sum(-1, keepdim=True)
        weights = kept / torch.where(total == 0, torch.ones_like(total), total)
        return Routed(weights, chosen, p if self.balance_on == "probability" else excess * present)


LANES = 64
"""Numbers that torch takes at a time on a CPU, at most; the rest of a tensor goes by another formula."""


def _logit(
    x: Float[Tensor, "tokens in"], row: Float[Tensor, "1 in"], bias: Float[Tensor, " 1"]
) -> Float[Tensor, "tokens 1"]:
    """x row^T + bias, as products with zero columns beside them, so that a run rounds alone as it does in a pack.

    A product with one column is another kernel (2e-7 of B's gradient at the first step), and the gradient of a bias
    that is added is a sum over the row's tokens in an order that goes with their number (6e-7 of it).
    """
    beside = row.new_zeros(COLUMNS - 1, row.shape[1])
    of_x = product(x, torch.cat([row, beside]).mT)
    of_bias = product(x.new_ones(len(x), 1), torch.cat([bias, beside[:, 0]])[None])
    return (of_x + of_bias)[:, :1]


def _sigmoid(column: Float[Tensor, "tokens 1"]) -> Float[Tensor, "tokens 1"]:
    """Of whole lanes only: which numbers are a tensor's rest depends on the pack, and theirs is off by one unit."""
    return column.repeat(1, LANES).sigmoid()[:, :1]
