"""Views of what an adapter holds: its products, and the weight that a base-overwriting implementation would keep."""

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.attach import Adapted
from ablora.method.export import module_tensors
from ablora.method.layer import weight_of
from ablora.method.structure._gates import by_direction


def expert_products(adapted: Adapted, member: int, module: str) -> Float[Tensor, "experts out in"]:
    """s B_j A_j of every expert j as the factors stand now (one expert for a pair); dense, for inspection."""
    params, frozen = module_tensors(adapted, member, module)
    own = by_direction({**params, **frozen})
    A, B, scale = (_by_expert(adapted, member, own[role]) for role in ("A", "B", "scale"))
    return (B * scale[..., None]).mT @ A


def residual_weight(adapted: Adapted, member: int, module: str) -> Float[Tensor, "out in"]:
    """W0 - s sum_j e_j B0_j A0_j, e_j = 1/E the expected gate: what implementations that overwrite the base keep."""
    _, frozen = module_tensors(adapted, member, module)
    weight = weight_of(adapted.modules[module].base).to(frozen["scale"].dtype)
    if "A0" not in frozen:
        return weight
    own = by_direction(frozen)
    start = (own["B0"] * own["scale"][:, None]).mT @ own["A0"]
    if "mean_gates" not in own:
        return weight - start / _experts(adapted, member)
    gates = own["members"] @ own["mean_gates"]
    return weight - (own["B0"] * (own["scale"] * gates)[:, None]).mT @ own["A0"]


def _experts(adapted: Adapted, member: int) -> int:
    method = adapted.members[member].method
    assert method is not None
    return method.structure.experts


def _by_expert(adapted: Adapted, member: int, tensor: Tensor) -> Tensor:
    """(rank, ...) as (experts, rank of one expert, ...)."""
    return torch.stack(tensor.chunk(_experts(adapted, member)))
