"""Mixtures of low-rank experts: one pair whose hidden vector is gated in blocks."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure import _displacement as displacement
from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats, Unmergeable
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How strongly uneven routing is punished. The loss itself is normalised: 1 when balanced, mean over modules.

    convention   what `coefficient` multiplies in its source                    coefficient on the normalised loss
    normalised   the mean over modules of losses that are 1 when balanced       c
    summed       the sum over modules of losses that are 1 when balanced        c * modules
    summed_at_k  the sum over modules of losses that are k when balanced        c * k * modules

    GOAT's 1e-3 is `summed_at_k` as its code computes it (Facico/GOAT-PEFT@ef4d21a layer.py, model.py): 224 modules
    at k = 2 make 0.45 of it here. The paper's text (arXiv:2502.16894v4 appendix C) normalises by k: `summed`.
    """

    coefficient: float
    convention: Literal["normalised", "summed", "summed_at_k"]

    def __post_init__(self) -> None:
        check(self.coefficient >= 0, "coefficient", self.coefficient, "a number of at least 0")

    def of_module(self, modules: int, top_k: int) -> float:
        """The factor of one module's normalised loss in the run's loss."""
        return self.coefficient * {"normalised": 1 / modules, "summed": 1.0, "summed_at_k": top_k}[self.convention]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """Route each token to its top-k of E low-rank experts; their start is subtracted at its expected weight 1/E.

    p = softmax(G x),  w = top-k of p, renormalised to sum 1,  g = w spread over each expert's block of directions
    y = W0 x + s B (g * A x) - (s/E) B0 A0 x
      = W0 x + s [dB B0] [g * h; (g - 1/E) * h + d/E],   h = A drop(x),  d = (A - A0) drop(x)

    A (r, n) and B (m, r) hold E blocks of r_e = r/E directions; G (E, n), no bias, sees the input without dropout.
    Balance loss of a module over its T real tokens: sum_i f_i P_i, f_i = E/(k T) * (tokens routed to i),
    P_i = mean of p_i: 1 when balanced.
    router_gradient `sqrt`: the same output, but experts are differentiated as if their gate were sqrt(g); with q the
    value of sqrt(g), E_i(x) = s B_i A_i drop(x) and [.] a value without gradient, g_i E_i becomes
      q_i E_i + (g_i - q_i) [E_i],   so dy/dE_i = q_i and dy/dg_i = E_i; no difference at k = 1.

    Source: arXiv:2502.16894v4 section 3 and appendix C; Facico/GOAT-PEFT@ef4d21a goat/peta/src/goat/layer.py. With
        `init: zero_b` this is the MoLoRA baseline of that paper. `sqrt`: arXiv:2502.15828 algorithm 1;
        THUDM/MoELoRA_Riemannian@e5c69a0 moe_lora.py (descent_strategy "moe-riemannian").
    Differs: one product in place of a loop over experts (equal to 2e-7 in float32); one dropout mask for all experts
        where the reference draws one per expert; padding is not counted in f and P; the base is not overwritten.
    """

    revision: ClassVar[int] = 1
    experts: int
    top_k: int
    balance: Balance
    router_gradient: Literal["plain", "sqrt"] = field(default="plain", metadata={"added": True})

    def __post_init__(self) -> None:
        check(self.experts >= 1, "experts", self.experts, "an integer of at least 1")
        check(1 <= self.top_k <= self.experts, "top_k", self.top_k, f"1 to experts ({self.experts})")

    @property
    def split_matters(self) -> bool:
        return self.balance.coefficient > 0

    def group(self) -> Hashable:
        return "experts", self.router_gradient

    def check_rank(self, rank: int) -> None:
        legal = f"a multiple of method.structure.experts ({self.experts}): rank counts the directions of all experts"
        check(rank % self.experts == 0, "rank", rank, legal)

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        """A random router: one at zero would send every token to the same k experts, and E[w] would not be 1/E."""
        bound = 1 / math.sqrt(shape.in_features)
        router = torch.empty(self.experts, shape.in_features).uniform_(-bound, bound, generator=generator)
        return {"router": router}

    def count_extra(self, shape: Shape) -> int:
        return self.experts * shape.in_features

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        size = shape.rank // self.experts
        return {
            "members": torch.eye(self.experts).repeat_interleave(size, dim=0),  # (rank, experts)
            "present": torch.ones(self.experts),
            "slots": torch.ones(self.top_k),
            "num_experts": torch.full((1,), float(self.experts)),
        }

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        probabilities, weights, chosen = route(params["router"], frozen, x)
        dtype = context.dropped.dtype
        gate = (weights @ frozen["members"].mT.to(weights.dtype)).to(dtype)
        hidden = context.dropped @ displacement.inward(params, frozen, dtype).mT
        back, s = displacement.outward(params, frozen, dtype), displacement.scale(frozen, dtype)
        if self.router_gradient == "plain":
            out = y + (gated(hidden, gate, frozen) * s) @ back
        else:
            root = gate.detach().sqrt()
            rest = (gate - root) * hidden[..., : gate.shape[-1]].detach()
            held = params["B"].detach().to(dtype)
            both = torch.cat([gated(hidden, root, frozen) * s, rest * frozen["scale"].to(dtype)], dim=-1)
            out = y + both @ torch.cat([back, held])  # h held still without its B would give B the gradient of g
        stats = routing_stats(probabilities, chosen, frozen, context.real)
        if context.per_token:
            stats = {**stats, "probabilities": probabilities, "weights": weights, "chosen": chosen}
        return out, stats

    def penalty(self, stats: Stats, modules: int) -> Float[Tensor, ""] | None:
        if self.balance.coefficient == 0:
            return None
        return self.balance.of_module(modules, self.top_k) * stats["balance"]

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        return None

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        raise Unmergeable("a mixture routes every token on its own: no single weight acts like it; export the adapter")

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        raise Unmergeable("a mixture routes every token on its own: PEFT's LoRA cannot express it")


def gated(
    hidden: Float[Tensor, "tokens directions"], gate: Float[Tensor, "tokens rank"], frozen: Frozen
) -> Float[Tensor, "tokens directions"]:
    """g * h; or from [h; d] of a started mixture [g * h; (g - 1/E) * h + d/E]."""
    if "A0" not in frozen:
        return gate * hidden
    h, d = hidden.chunk(2, dim=-1)
    mean = (1 / frozen["num_experts"]).to(gate.dtype)
    return torch.cat([gate * h, (gate - mean) * h + mean * d], dim=-1)


def route(
    router: Float[Tensor, "experts in"], frozen: Frozen, x: Float[Tensor, "tokens in"]
) -> tuple[Float[Tensor, "tokens experts"], Float[Tensor, "tokens experts"], Float[Tensor, "tokens experts"]]:
    """(p, w, chosen): softmax over the present experts, its top-k renormalised to sum 1, and 1 where an expert is one
    of the k; at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    logits = x.to(dtype) @ router.to(dtype).mT
    logits = logits.masked_fill(frozen["present"] == 0, -math.inf)
    p = logits.softmax(-1)
    slots = frozen["slots"].to(dtype)
    top, index = p.topk(slots.shape[-1], dim=-1)
    top = top * slots
    top = top / top.sum(-1, keepdim=True)
    blank = torch.zeros_like(p)
    return p, blank.scatter(-1, index, top), blank.scatter(-1, index, slots.expand_as(top))


def routing_stats(
    p: Float[Tensor, "tokens experts"], chosen: Float[Tensor, "tokens experts"], frozen: Frozen, real: Tensor
) -> Stats:
    """The balance loss (1 when balanced) and the share of real tokens that each expert got (sums to k)."""
    mask = real.to(p.dtype)[:, None]
    tokens = mask.sum()
    load = (chosen * mask).sum(0) / tokens
    mean_p = (p * mask).sum(0) / tokens
    k, num = frozen["slots"].to(p.dtype).sum(), frozen["num_experts"].to(p.dtype).squeeze(-1)
    return {"balance": (num / k) * (load * mean_p).sum(), "load": load}
