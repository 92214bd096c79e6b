"""The balance loss of a mixture: what uneven routing costs, in one convention for all papers' coefficients."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablora.method.structure._base import Frozen, Stats
from ablora.method.structure._product import COLUMNS, product
from ablora.method.structure.routing._base import Routed
from ablora.spec import check

LEAST = 1e-9
"""Stands for a mean number of experts where no token has one; its square's inverse is a number in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How strongly uneven routing is punished. The loss itself is normalised: 1 when balanced, mean over modules.

    convention   what `coefficient` multiplies in its source                    coefficient on the normalised loss
    normalised   the mean over modules of losses that are 1 when balanced       c
    summed       the sum over modules of losses that are 1 when balanced        c * modules
    summed_at_k  the sum over modules of losses that are k when balanced        c * k * modules

    k is the number of experts of a token; where routing lets it vary, its mean over the module's real tokens, which
    carries no gradient. GOAT's 1e-3 is `summed_at_k` as its code computes it (Facico/GOAT-PEFT@ef4d21a layer.py,
    model.py): 224 modules at k = 2 make 0.45 of it here. The paper's text (arXiv:2502.16894v4 appendix C) normalises
    by k: `summed`. AdaMoLE's 1e-3 is `summed_at_k` too (zefang-liu/AdaMoLE@5e8599a src/adamole/layer.py).
    """

    coefficient: float
    convention: Literal["normalised", "summed", "summed_at_k"]

    def __post_init__(self) -> None:
        check(self.coefficient >= 0, "coefficient", self.coefficient, "a number of at least 0")

    def of_module(self, modules: int, top_k: int | Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The factor of one module's normalised loss in the run's loss."""
        return self.coefficient * {"normalised": 1 / modules, "summed": 1.0, "summed_at_k": top_k}[self.convention]


def routing_stats(routed: Routed, frozen: Frozen, real: Bool[Tensor, " tokens"]) -> Stats:
    """The balance loss over the routed experts, and the share of real tokens that each got (sums to k).

    balance = (E/k) sum_i load_i P_i: 1 when balanced, with P_i the mean of what the routing is judged by (its softmax).
    """
    mask = real.to(routed.judged.dtype)[:, None]
    # A run that waits for its pack-mates' micro-batches has no real token: 0 / 0 would go backward as nan to all of it.
    tokens = mask.sum().clamp_min(1)
    load, mean_p = (_over_tokens(mask, of_token) / tokens for of_token in (routed.chosen, routed.judged))
    num = frozen["num_experts"].to(mask.dtype).squeeze(-1)
    k = frozen["slots"].to(mask.dtype).sum() if "slots" in frozen else load.sum().clamp_min(LEAST)
    return {"balance": (num / k) * (load * mean_p).sum(), "load": load}


def _over_tokens(mask: Float[Tensor, "tokens 1"], values: Float[Tensor, "tokens experts"]) -> Float[Tensor, " experts"]:
    """The sum over real tokens, as a product: the order of a plain sum goes with the row's length, padding included, so
    that it rounds alone and in a pack differently."""
    experts = values.shape[1]
    beside = values.new_zeros(len(values), -experts % COLUMNS)
    return product(mask.mT, torch.cat([values, beside], dim=1))[0, :experts]
