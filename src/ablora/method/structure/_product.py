"""Products of structures: one run alone rounds as it does in a pack."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COLUMNS = 8
"""Products of so many columns, or a multiple, round alone as they do in a pack. One column is another kernel; with a
router to 7 experts its gradient was off by 5e-8 at the first step, with factors of rank 10 by 3e-8 at the seventh."""


def product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """left @ right as a batch of one, which is what vmap makes of it in a pack.

    The gradient of a transposed factor is taken the other way round by `mm` than by `bmm`, and at a rank of 8 the two
    were seen to round differently (4e-8 after five steps).
    """
    return torch.bmm(left[None], right[None]).squeeze(0)


def scaled(rows: Float[Tensor, "tokens columns"], factor: Float[Tensor, " columns"]) -> Float[Tensor, "tokens columns"]:
    """rows * factor; the factor's gradient is a product, where a sum over a row's tokens has an order that goes with
    their number and rounds alone and in a pack differently (1e-7 of DoRA's magnitudes at the first step)."""
    return _Scaled.apply(rows, factor)  # pyright: ignore[reportReturnType]


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, factor: Tensor) -> Tensor:
        return rows * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, factor = ctx.saved_tensors
        of_rows, of_factor = ctx.needs_input_grad
        return (
            grad * factor if of_rows else None,
            product(rows.new_ones(1, len(rows)), grad * rows)[0] if of_factor else None,
        )
