"""Gated low-rank products: what a mixture adds to the base's output, each form as one product."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure import _displacement as displacement
from ablora.method.structure._base import Frozen, Params
from ablora.method.structure._product import COLUMNS, product

Gate = Float[Tensor, "tokens rank"]


def router_probabilities(
    router: Float[Tensor, "experts in"], frozen: Frozen, x: Float[Tensor, "tokens in"]
) -> Float[Tensor, "tokens experts"]:
    """softmax(G x) over the present experts, at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    beside = router.new_zeros(-len(router) % COLUMNS, router.shape[1])
    logits = product(x.to(dtype), torch.cat([router, beside]).to(dtype).mT)[:, : len(router)]
    return logits.masked_fill(frozen["present"] == 0, -math.inf).softmax(-1)


def in_front(value: float, others: Float[Tensor, "tokens routed"]) -> Float[Tensor, "tokens experts"]:
    """A shared expert's column before those of the routed ones."""
    return torch.cat([torch.full_like(others[..., :1], value), others], dim=-1)


def by_direction(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One module's tensors by role with a row of A, A0 and B0 for every direction, where heads share them."""
    if "heads" not in tensors:
        return dict(tensors)
    shared = {role: tensors[role] for role in ("A", "A0", "B0") if role in tensors}
    return {**tensors, **{role: tensors["heads"].to(tensor) @ tensor for role, tensor in shared.items()}}


def branch(params: Params, frozen: Frozen, x: Float[Tensor, "tokens in"], gate: Gate) -> Float[Tensor, "tokens out"]:
    """s B (g * A x), less the start at its expected gates."""
    hidden = product(x, displacement.inward(params, frozen, x.dtype).mT)
    gated = _gated(hidden, gate, frozen) * displacement.scale(frozen, x.dtype)
    return product(gated, displacement.outward(params, frozen, x.dtype))


def root_branch(
    params: Params, frozen: Frozen, x: Float[Tensor, "tokens in"], gate: Gate
) -> Float[Tensor, "tokens out"]:
    """The same value, differentiated by the factors as if the gate were sqrt(g)."""
    hidden, root = product(x, displacement.inward(params, frozen, x.dtype).mT), gate.detach().sqrt()
    rest = (gate - root) * hidden[..., : gate.shape[-1]].detach()
    held = params["B"].detach().to(x.dtype)  # h held still without its B would give B the gradient of g
    both = [_gated(hidden, root, frozen) * displacement.scale(frozen, x.dtype), rest * frozen["scale"].to(x.dtype)]
    return product(torch.cat(both, dim=-1), torch.cat([displacement.outward(params, frozen, x.dtype), held]))


def shared_branch(
    params: Params, frozen: Frozen, x: Float[Tensor, "tokens in"], gate: Gate
) -> Float[Tensor, "tokens out"]:
    """Heads B_i on one A: s B (g * H A x), H (rank, r_e) the row of A that each direction reads.

    All heads start at one B0, and their gates sum to 1, so that what the start adds is exactly B0 A0 x:
      s [B - H B0; B0]^T [g * H A x; dA x],   0 at step 0 whatever the gates.
    """
    heads = frozen["heads"].to(x.dtype)
    hidden = product(x, displacement.inward(params, frozen, x.dtype).mT)
    s, B = frozen["scale"].to(x.dtype), params["B"]
    if "A0" not in frozen:
        return product(gate * product(hidden, heads.mT) * s, B.to(x.dtype))
    h, d = hidden.chunk(2, dim=-1)
    B0 = frozen["B0"]
    back = torch.cat([B - frozen["heads"] @ B0, B0]).to(x.dtype)
    of_rows = (heads * s[:, None]).amax(0)  # one s for all heads of a row; 0 for padding
    return product(torch.cat([gate * product(h, heads.mT) * s, d * of_rows], dim=-1), back)


def _gated(
    hidden: Float[Tensor, "tokens directions"], gate: Gate, frozen: Frozen
) -> Float[Tensor, "tokens directions"]:
    """g * h; or from [h; d] of a started mixture [g * h; (g - e) * h + e * d], e the expected gate."""
    if "A0" not in frozen:
        return gate * hidden
    h, d = hidden.chunk(2, dim=-1)
    if "mean_gates" in frozen:
        mean = (frozen["members"] @ frozen["mean_gates"]).to(gate.dtype)
    else:
        mean = (1 / frozen["num_experts"]).to(gate.dtype)
    return torch.cat([gate * h, (gate - mean) * h + mean * d], dim=-1)
