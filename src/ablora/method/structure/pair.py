"""LoRA's structure: one pair of factors."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure import _displacement as displacement
from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats
from ablora.method.structure._product import product


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Add one low-rank product to the base's output.

    y = W0 x + s (B A - B0 A0) drop(x) = W0 x + s (dB A + B0 dA) drop(x),   A (r, n), B (m, r); A0 = B0 = 0 for LoRA.

    Source: arXiv:2106.09685 equation 3; huggingface/peft 0.21.2 tuners/lora/layer.py (Linear.forward).
    Differs: the start is subtracted in the forward and the base weight is never written, so that step 0 is the base
        bit for bit and switching the adapter off is the base again.
    """

    revision: ClassVar[int] = 1

    @property
    def experts(self) -> int:
        return 1

    @property
    def split_matters(self) -> bool:
        return False

    def group(self) -> Hashable:
        return "pair"

    def check_rank(self, rank: int) -> None:
        return None

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        return {}

    def count_extra(self, shape: Shape) -> int:
        return 0

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        return {}

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        dtype = context.dropped.dtype
        hidden = product(context.dropped, displacement.inward(params, frozen, dtype).mT)
        hidden = hidden * displacement.scale(frozen, dtype)
        return y + product(hidden, displacement.outward(params, frozen, dtype)), {}

    def penalty(self, stats: Stats, modules: int) -> None:
        return None

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        return None

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        """W0 + s (B A - B0 A0)."""
        return weight + displacement.update(params, frozen)

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        """[A; A - A0] and s [B - B0; B0]: of rank 2r for a start away from zero."""
        dtype = params["A"].dtype
        B = displacement.outward(params, frozen, dtype) * displacement.scale(frozen, dtype)[:, None]
        return Exported(displacement.inward(params, frozen, dtype), B)
