"""Gradients of factors, preconditioned by their partner's Gram matrix, expert by expert.

Gram matrices and their inverses are in float64, stacked r_e x r_e: with a delta of 1e-6 their condition reaches 1e6,
and float32 would keep a digit. The inverse is applied in the gradient's dtype, whose own rounding it enlarges as much.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Side(NamedTuple):
    """One factor's gradient in one module, and the factor that its product is made with."""

    grad: Float[Tensor, "rank features"]
    partner: Float[Tensor, "partner_rank others"]
    """Of the same rank, or of one expert's where experts share it."""


@torch.no_grad()
def precondition(sides: Sequence[Side], experts: int, delta: float) -> int:
    """Change each gradient G_e to (F_e F_e^T + delta I)^-1 G_e in place, F_e the partner's block of expert e.

    All matrices of one size are factored in one call. One that has no Cholesky factor (not positive in float64, or not
    finite) leaves its gradient as it is; returns how many did.
    """
    failed = 0
    by_size: dict[int, list[Side]] = {}
    for side in sides:
        by_size.setdefault(len(side.grad) // experts, []).append(side)
    for size, equal in by_size.items():
        eye = torch.eye(size, dtype=torch.float64, device=equal[0].grad.device)
        blocks = [side.partner.detach().double().unflatten(0, (-1, size)) for side in equal]
        grams = torch.stack([(F @ F.mT).expand(experts, size, size) for F in blocks]) + delta * eye
        lower, info = torch.linalg.cholesky_ex(grams)
        inverse = torch.cholesky_inverse(torch.where((info == 0)[..., None, None], lower, eye))
        for side, P in zip(equal, inverse):
            blocks_of_grad = side.grad.unflatten(0, (experts, size))
            blocks_of_grad.copy_(P.to(side.grad) @ blocks_of_grad)
        failed += int(info.count_nonzero())
    return failed
