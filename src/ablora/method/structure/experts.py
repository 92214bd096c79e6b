"""Mixtures of low-rank experts: one pair whose hidden vector is gated in blocks."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats, Unmergeable
from ablora.method.structure._gates import branch, in_front, root_branch, router_probabilities, shared_branch
from ablora.method.structure._product import product
from ablora.method.structure._router import check_router, rule_of, start_router
from ablora.method.structure.balance import Balance, routing_stats
from ablora.method.structure.routing._base import Routing
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """Route each token to some of E low-rank experts; their start is subtracted at its expected weight 1/E.

    p = softmax(G x),  w = what the routing makes of p (rows sum to 1),  g = w spread over each expert's directions
    y = W0 x + s B (g * A x) - (s/E) B0 A0 x
      = W0 x + s [dB B0] [g * h; (g - 1/E) * h + d/E],   h = A drop(x),  d = (A - A0) drop(x)

    A (r, n) and B (m, r) hold E blocks of r_e = r/E directions; G (E, n), no bias, sees the input without dropout.
    Routing: the `top_k` likeliest experts, or (top_k null) a value of structure/routing: soft, top_p, threshold.
    Balance loss of a module over its T real tokens: sum_i f_i P_i, f_i = E/(k T) * (tokens routed to i),
    P_i = mean of p_i: 1 when balanced.
    shared_a: one A (r_e, n) for all experts, which are then heads B_i: a start is subtracted exactly (sum_i w_i = 1).
    shared_expert: the first expert gets every token with weight 1 beside those that are routed among the other E - 1;
    its start is subtracted in full, theirs at 1/(E - 1).
    router_gradient `sqrt`: the same output, but experts are differentiated as if their gate were sqrt(g); with q the
    value of sqrt(g), E_i(x) = s B_i A_i drop(x) and [.] a value without gradient, g_i E_i becomes
      q_i E_i + (g_i - q_i) [E_i],   so dy/dE_i = q_i and dy/dg_i = E_i; no difference at k = 1.

    Source: arXiv:2502.16894v4 section 3 and appendix C; Facico/GOAT-PEFT@ef4d21a goat/peta/src/goat/layer.py. With
        `init: zero_b` this is the MoLoRA baseline of that paper. `sqrt`: arXiv:2502.15828 algorithm 1;
        THUDM/MoELoRA_Riemannian@e5c69a0 moe_lora.py (descent_strategy "moe-riemannian"). `shared_a`: HydraLoRA,
        arXiv:2404.19245 equation 4; Clin0212/HydraLoRA@afb693b HydraLoRA/peft/tuners/lora.py. `shared_expert`: as in
        arXiv:2401.06066 equation 9; GOAT's ablation names one, and neither its text nor its code defines it.
    Differs: one product in place of a loop over experts (equal to 2e-7 in float32); one dropout mask for all experts
        where the references draw one per expert or head; padding is not counted in f and P; the base is not
        overwritten.
    """

    revision: ClassVar[int] = 1
    experts: int
    top_k: int | None
    """Experts per token; null where `routing` decides."""
    balance: Balance
    router_gradient: Literal["plain", "sqrt"] = field(default="plain", metadata={"added": True})
    routing: Any = field(default=None, metadata={"added": True})
    """Another rule than top-k; null: top-k."""
    router_std: float | None = field(default=None, metadata={"added": True})
    """G starts at N(0, std^2); null: U(-1/sqrt(n), 1/sqrt(n))."""
    shared_a: bool = field(default=False, metadata={"added": True})
    shared_expert: bool = field(default=False, metadata={"added": True})

    def __post_init__(self) -> None:
        least = 2 if self.shared_expert else 1
        check(self.experts >= least, "experts", self.experts, f"an integer of at least {least}")
        check_router(self.top_k, self.routing, self.router_std, self.routed)
        legal = "plain with shared_a: `sqrt` differentiates experts that have an A each"
        check(not self.shared_a or self.router_gradient == "plain", "router_gradient", self.router_gradient, legal)
        legal = "false with shared_a: heads that start alike are the base only while their weights sum to 1"
        check(not (self.shared_a and self.shared_expert), "shared_expert", self.shared_expert, legal)

    @property
    def rule(self) -> Routing:
        """How a token finds its experts."""
        return rule_of(self.top_k, self.routing)

    @property
    def routed(self) -> int:
        """How many experts the router has to do with."""
        return self.experts - self.shared_expert

    @property
    def split_matters(self) -> bool:
        return self.balance.coefficient > 0

    def group(self) -> Hashable:
        return "experts", self.rule.group(), self.router_gradient, self.shared_a, self.shared_expert

    def check_rank(self, rank: int) -> None:
        legal = f"a multiple of method.structure.experts ({self.experts}): rank counts the directions of all experts"
        check(rank % self.experts == 0, "rank", rank, legal)

    def inward_rank(self, rank: int) -> int:
        return rank // self.experts if self.shared_a else rank

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        router = start_router(self.routed, shape.in_features, self.router_std, generator)
        return {"router": router, **self.rule.extra(shape.in_features, generator)}

    def count_extra(self, shape: Shape) -> int:
        return self.routed * shape.in_features + self.rule.count_extra(shape.in_features)

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        size = shape.rank // self.experts
        out = {
            "members": torch.eye(self.experts).repeat_interleave(size, dim=0),  # (rank, experts)
            "present": torch.ones(self.routed),
            "num_experts": torch.full((1,), float(self.routed)),
            **self.rule.constants(self.routed),
        }
        if self.shared_a:
            out["heads"] = torch.eye(size).repeat(self.experts, 1)  # (rank, inward rank): whose row of A it reads
        if self.shared_expert:
            out["mean_gates"] = torch.tensor([1.0] + [1 / self.routed] * self.routed, dtype=torch.float64)
        return out

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        p = router_probabilities(params["router"], frozen, x)
        routed = self.rule(params, frozen, x, p)
        weights = in_front(1.0, routed.weights) if self.shared_expert else routed.weights
        gate = product(weights, frozen["members"].mT.to(p.dtype)).to(context.dropped.dtype)
        act = shared_branch if self.shared_a else root_branch if self.router_gradient == "sqrt" else branch
        out = y + act(params, frozen, context.dropped, gate)
        stats = routing_stats(routed, frozen, context.real)
        if context.per_token:
            judged = {"probabilities": p, "chosen": routed.chosen, "routable": frozen["present"].expand(1, -1)}
            if self.shared_expert:  # every token's, and nothing that the router judges
                fill = {"probabilities": 0.0, "chosen": 1.0, "routable": 0.0}
                judged = {key: in_front(fill[key], value) for key, value in judged.items()}
            stats = {**stats, **judged, "weights": weights}
        return out, stats

    def penalty(self, stats: Stats, modules: int) -> Float[Tensor, ""] | None:
        if self.balance.coefficient == 0:
            return None
        k = stats["load"].sum() if self.top_k is None else self.top_k
        return self.balance.of_module(modules, k) * stats["balance"]

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        return None

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        raise Unmergeable("a mixture routes every token on its own: no single weight acts like it; export the adapter")

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        raise Unmergeable("a mixture routes every token on its own: PEFT's LoRA cannot express it")
