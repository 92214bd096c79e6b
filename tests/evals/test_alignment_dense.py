"""Alignment's G and E as matrices: G from the product's own mixture of full experts (or a plain merged weight) by
autograd, E by the formula from that G and by the derivative of a step of the factors by its rate, entry by entry."""

from typing import Any, cast

import pytest
import torch
from test_alignment import adapted_base, agrees, items, measured, merged_gradients
from torch import Tensor
from torch.func import jvp

from ablora.evals._base import Items
from ablora.method.attach import Adapted
from ablora.method.factors import expert_products
from ablora.method.full_moe import FullMoE
from ablora.method.structure._gates import by_direction
from ablora.method.structure.experts import Experts
from ablora.method.structure.full_experts import FullExperts
from ablora.models.base import Base
from ablora.models.rows import label_losses, lay_out
from presets import method
from tiny import adapt, llama

MIXTURES = {
    "goat": ("structure.experts=4",),
    "goat_top_p": ("structure.experts=4", "structure.routing.top_p=0.6"),
    "molora": (),
    "molora_topk": (),
    "hydralora": (),
    "adamole": ("structure.experts=4",),
}
"""Presets whose mixture of full experts exists. One that all tokens see beside the others does not, nor one whose
experts learn by the root of their gates (`moe_riemannian`): test_alignment.py has these as layers written for it."""


def backward(base: Base, adapted: Adapted, given: Items) -> Tensor:
    """The mean loss over answer tokens, with gradients handed out."""
    adapted.clear_gradients()
    loss = label_losses(base.model, lay_out([given.encoded])).mean()
    loss.backward()
    adapted.hand_out_gradients()
    return loss.detach()


def factors_of(adapted: Adapted, name: str) -> dict[str, Tensor]:
    params, frozen = adapted.factors(0)[name]
    return {role: tensor.detach() for role, tensor in {**params, **frozen}.items()}


def products_of(own: dict[str, Tensor], experts: int, A: Tensor, B: Tensor) -> Tensor:
    """(experts, out, in): s B_e A_e."""
    full = by_direction({**own, "A": A, "B": B})
    A, B, s = (full[role].unflatten(0, (experts, -1)) for role in ("A", "B", "scale"))
    return (B * s[..., None]).mT @ A


def derivative(adapted: Adapted, name: str, experts: int) -> Tensor:
    """-d/dh of s B_e(h) A_e(h) at h = 0, factors moved by -h times their gradients; those held still do not move."""
    params, own = adapted.factors(0)[name].params, factors_of(adapted, name)
    a, b = (torch.zeros_like(own[r]) if (g := params[r].grad) is None else g for r in ("A", "B"))
    moved = lambda A, B: products_of(own, experts, A, B)  # noqa: E731
    return -jvp(moved, (own["A"], own["B"]), (-a, -b))[1]


def formula(adapted: Adapted, name: str, full: Tensor) -> Tensor:
    """s^2 (B_e B_e^T G_e + G_e A_e^T A_e), a held factor's term left out; heads on one A move it by their sum."""
    chosen = cast(Any, adapted.members[0].method)
    own, experts = factors_of(adapted, name), len(full)
    each = by_direction(own)
    A, B, s = (each[role].unflatten(0, (experts, -1)) for role in ("A", "B", "scale"))
    B = B.mT  # (experts, out, r)
    s = s[:, :1, None]
    through_B = s * B.mT @ full
    if "heads" in own:
        through_B = through_B.sum(0, keepdim=True)
    moves_A = s * B @ through_B if chosen.update.trains("A") else torch.zeros_like(full)
    return moves_A + s.square() * full @ A.mT @ A


def same_entries(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def as_full_experts(adapted: Adapted, structure: Experts) -> tuple[Base, Adapted]:
    """The mixture of full experts that computes what the low-rank one does, by the same routers: W_e = W0 + D_e,
    D_e = s (B_e A_e - the start that is taken away from all), whose gates sum to 1."""
    experts = FullExperts(experts=structure.experts, top_k=structure.top_k, balance=structure.balance,
                          routing=structure.routing, router_std=structure.router_std)  # fmt: skip
    base = Base(llama(torch.float64), cast(Any, None))
    full = adapt(base.model, FullMoE(name="full_moe", structure=experts), compute_dtype="float64")
    for name in adapted.modules:
        own, D = factors_of(adapted, name), expert_products(adapted, 0, name).detach()
        if "A0" in own:
            D = D - products_of(own, structure.experts, own["A0"], own["B0"]).mean(0)
        routing = {f"{name}.{role}": t for role, t in own.items() if role in ("router", "threshold", "threshold_bias")}
        full.write(0, {f"{name}.D": D, **routing})
    return base, full


@pytest.mark.parametrize("preset", MIXTURES)
def test_a_mixture_s_gradients_are_those_of_the_mixture_of_full_experts(preset):
    base, adapted = adapted_base(method(preset, *MIXTURES[preset]))
    structure: Experts = cast(Any, adapted.members[0].method).structure
    (found,) = measured(base, adapted, [items()])
    full_base, full = as_full_experts(adapted, structure)
    losses = [backward(base, adapted, items()), backward(full_base, full, items())]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for name in adapted.modules:
        for role in set(full.factors(0)[name].params) - {"D"}:
            mine, theirs = (a.factors(0)[name].params[role].grad for a in (adapted, full))
            same_entries(cast(Tensor, mine), cast(Tensor, theirs))
    G = {name: cast(Tensor, factors.params["D"].grad) for name, factors in full.factors(0).items()}
    E = {name: derivative(adapted, name, structure.experts) for name in G}
    for name in G:
        same_entries(formula(adapted, name, G[name]), E[name])
    agrees(found, G, E)


@pytest.mark.parametrize("preset", ["lora", "pissa", "lora_fa"])
def test_a_pair_s_step_is_the_formula_of_the_merged_weight_s_gradient(preset):
    base, adapted = adapted_base(method(preset))
    (found,) = measured(base, adapted, [items()])
    G = {name: full[None] for name, full in merged_gradients(base, adapted, items()).items()}
    backward(base, adapted, items())
    E = {name: derivative(adapted, name, 1) for name in G}
    for name in G:
        same_entries(formula(adapted, name, G[name]), E[name])
    agrees(found, G, E)
