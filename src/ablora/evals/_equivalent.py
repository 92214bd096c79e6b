"""A step of low-rank factors as a step of the weight they stand for, in factored form: no (out, in) matrix is made."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ablora.method.structure._base import Factors
from ablora.method.structure._gates import by_direction

BLOCK = 1024
"""Rows at a time of the (tokens, tokens) products: 16 MiB for 2048 tokens. Not tuned."""


class Flow(NamedTuple):
    """What goes through one module in a pass over one run's real tokens."""

    x: Float[Tensor, "tokens in"]
    """Its inputs."""
    delta: Float[Tensor, "tokens out"]
    """The loss's gradient by its outputs."""
    gates: Float[Tensor, "tokens experts"]
    """By which each expert's gradient is weighted; a column of ones for a pair."""


class Alignment(NamedTuple):
    """Of an equivalent gradient and the full one; the first two are 0 where one of them is 0."""

    cosine: float
    norm_ratio: float
    """|equivalent| / |full|"""
    gradient_norm: float
    """|full|, in nats per unit of weight"""


@torch.no_grad()
def align(flow: Flow, factors: Factors, trained: frozenset[str]) -> Alignment:
    """Compare (E_1, .., E_k) with (G_1, .., G_k) over the experts, as two long vectors, in float64.

    G_e = sum_t g_te delta_t x_t^T (out, in),   E_e = s^2 (B_e B_e^T G_e + G_e A_e^T A_e), held factors' terms left out
    """
    flow = Flow(*(tensor.double() for tensor in flow))
    full = _full_square(flow)
    inner, own = _equivalent(flow, factors, trained)
    if full <= 0 or own <= 0:
        return Alignment(0.0, 0.0, math.sqrt(max(full, 0.0)))
    return Alignment(inner / math.sqrt(full * own), math.sqrt(own / full), math.sqrt(full))


def _full_square(flow: Flow) -> float:
    """sum_e |G_e|^2 = sum_tu (delta_t . delta_u) (x_t . x_u) (g_t . g_u)."""
    parts = zip(*(tensor.split(BLOCK) for tensor in flow))
    blocks = [(d @ flow.delta.mT) * (x @ flow.x.mT) * (g @ flow.gates.mT) for x, d, g in parts]
    return sum(block.sum().item() for block in blocks)


def _equivalent(flow: Flow, factors: Factors, trained: frozenset[str]) -> tuple[float, float]:
    """sum_e <E_e, G_e> and sum_e |E_e|^2.

    With the factors' gradients b = s G_e A_e^T and a = s B_e^T G_e (rank first) of every direction,
      E_e = s (b^T A + B^T a) = U^T V,   U = s [b; B], V = [A; a] over the directions of e.
    """
    own = {k: t.detach().double() for k, t in by_direction({**factors.params, **factors.frozen}).items()}
    A, B, s = own["A"], own["B"], own["scale"][:, None]
    members = own.get("members", torch.ones_like(s))  # (rank, experts)
    gate = flow.gates @ members.mT
    through_A = (gate * (flow.x @ A.mT)).mT @ flow.delta  # (rank, out): G_e A_e^T
    through_B = (gate * (flow.delta @ B.mT)).mT @ flow.x  # (rank, in): B_e^T G_e
    b = s * through_A * ("B" in trained)
    a = s * through_B * ("A" in trained)
    if "heads" in own:  # one row of A for several directions: its gradient is the sum of theirs
        a = own["heads"] @ (own["heads"].mT @ a)
    inner = (s * (b * through_A).sum(-1, keepdim=True)).sum() + (s * (a * through_B).sum(-1, keepdim=True)).sum()
    U, V = torch.cat([s * b, s * B]), torch.cat([A, a])
    return inner.item(), _square(U, V, torch.cat([members, members]))


def _square(
    U: Float64[Tensor, "directions out"], V: Float64[Tensor, "directions in"], members: Float64[Tensor, "directions _"]
) -> float:
    """sum_e |U_e^T V_e|^2."""
    return ((U @ U.mT) * (V @ V.mT) * (members @ members.mT)).sum().item()
