"""Views of what an adapter holds: its products, and the weight that a base-overwriting implementation would keep."""

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.attach import Adapted
from ablora.method.export import module_tensors


def expert_products(adapted: Adapted, member: int, module: str) -> Float[Tensor, "experts out in"]:
    """s B_j A_j of every expert j as the factors stand now (one expert for a pair); dense, for inspection."""
    params, frozen = module_tensors(adapted, member, module)
    A, B = _by_expert(adapted, member, params["A"]), _by_expert(adapted, member, params["B"])
    scale = _by_expert(adapted, member, frozen["scale"])
    return (B * scale[..., None]).mT @ A


def residual_weight(adapted: Adapted, member: int, module: str) -> Float[Tensor, "out in"]:
    """W0 - (s/E) sum_j B0_j A0_j: what implementations that overwrite the base keep as its weight."""
    _, frozen = module_tensors(adapted, member, module)
    weight = adapted.modules[module].base.weight.to(frozen["scale"].dtype)
    if "A0" not in frozen:
        return weight
    A0, B0 = frozen["A0"], frozen["B0"]
    return weight - (B0 * frozen["scale"][:, None]).mT @ A0 / _experts(adapted, member)


def _experts(adapted: Adapted, member: int) -> int:
    method = adapted.members[member].method
    assert method is not None
    return method.structure.experts


def _by_expert(adapted: Adapted, member: int, tensor: Tensor) -> Tensor:
    """(rank, ...) as (experts, rank of one expert, ...)."""
    return torch.stack(tensor.chunk(_experts(adapted, member)))
