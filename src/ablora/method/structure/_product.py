"""Products of structures: one run alone rounds as it does in a pack."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COLUMNS = 8
"""Products of so many columns, or a multiple, round alone as they do in a pack. One column is another kernel; with a
router to 7 experts its gradient was off by 5e-8 at the first step, with factors of rank 10 by 3e-8 at the seventh."""

WIDE = 512
"""Rows of a right side from which on turning its gradient pays on a CPU. Packs included: at 192 what a pack adds to it
(0.6 ms a product) was more than the gain."""


def product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """left @ right as a batch of one, which is what vmap makes of it in a pack.

    The gradient of a transposed factor is taken the other way round by `mm` than by `bmm`, and at a rank of 8 the two
    were seen to round differently (4e-8 after five steps).
    """
    inner, columns = right.shape
    turned = left.device.type == "cpu" and inner >= WIDE and inner > columns
    return (_Turned.apply if turned else torch.bmm)(left[None], right[None]).squeeze(0)  # pyright: ignore[reportAttributeAccessIssue]


class _Turned(torch.autograd.Function):
    """torch.bmm, but for the right side's gradient, which is taken as (grad^T left)^T: with its few columns as rows.

    On a CPU left^T grad takes five times as long where 512 x 4255 meets 4255 x 8 (10.1 and 1.9 ms).
    """

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left, right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = ctx.saved_tensors
        of_left, of_right = ctx.needs_input_grad
        return torch.bmm(grad, right.mT) if of_left else None, torch.bmm(grad.mT, left).mT if of_right else None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, int | None], left: Tensor, right: Tensor) -> tuple[Tensor, int]:
        """All runs as one batch. By hand, since a generated rule would run the backward pass under vmap too."""
        runs = [t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)
                for t, at in zip((left, right), dims)]  # fmt: skip
        out = _Turned.apply(*(t.flatten(0, 1) for t in runs))
        return out.unflatten(0, (info.batch_size, -1)), 0  # pyright: ignore[reportOptionalMemberAccess]


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
