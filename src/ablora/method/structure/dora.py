"""DoRA's structure: a low-rank direction and a learnt length for every row of the weight."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure import _displacement as displacement
from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats
from ablora.method.structure._product import product, scaled

BLOCK = 2**20
"""Numbers of a base weight that are cast to the factors' dtype at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dora:
    """Give every row of the adapted weight a trained length m, so that the low-rank product changes directions only.

    c_i = m_i / |V_i|,   V = W0 + s (B A - B0 A0),   m starts at |W0_i|, rows over the n inputs; A0 = B0 = 0 for LoRA
    y = b + c (W0 x + s (dB A + B0 dA) x) = y0 + (c - 1) (y0 - b) + c s (dB A + B0 dA) x,   y0 = W0 x + b
    with dropout d:  y = y0 + (c - 1) W0 d(x) + c s (dB A + B0 dA) d(x),   the same d(x) in both.

    The norms without V, with b_i the i-th column of [dB B0] (rank first) and A~ = [A; dA]:
      |V_i|^2 = |W0_i|^2 + 2 s b_i . (A~ W0_i) + s^2 b_i . (A~ A~^T) b_i.
    m (m,) and |W0_i| (m,) are the same float32 numbers at the start, where the other two terms are exactly 0; the root
    of a rounded square is the number itself, so c = 1 and step 0 is the base bit for bit.
    detach_norm: |V_i| carries no gradient (the official `dora_simple`, and the paper's section 4.3).

    Source: arXiv:2402.09353 equations 5 and 11; NVlabs/DoRA@7e2f10a commonsense_reasoning/peft/src/peft/tuners/dora.py;
        huggingface/peft 0.21.2 tuners/lora/dora.py and variants.py (DoraLinearVariant).
    Differs: norms by the identity above, in the factors' own dtype, where both references form V; a started pair is
        displaced, so m starts at the norms of W0 and not of a residual; a row of W0 that is zero stays zero where the
        references give NaN. The paper says "column" of its transposed weight.
    """

    revision: ClassVar[int] = 1
    detach_norm: bool

    @property
    def experts(self) -> int:
        return 1

    @property
    def split_matters(self) -> bool:
        return False

    def group(self) -> Hashable:
        return "dora", self.detach_norm

    def check_rank(self, rank: int) -> None:
        return None

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        return {"magnitude": row_norms(weight)}

    def count_extra(self, shape: Shape) -> int:
        return shape.out_features

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        return {"row_norm": row_norms(weight)}

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        assert context.weight is not None
        dtype = context.dropped.dtype
        factor = rescaling(params, frozen, context.weight, self.detach_norm)
        hidden = product(context.dropped, displacement.inward(params, frozen, dtype).mT)
        learnt = product(hidden, (_outward(params, frozen) * factor).to(dtype))
        if context.drops:
            kept = context.dropped.to(context.weight.dtype) @ context.weight.mT
        elif context.bias is not None:
            kept = y - context.bias
        elif dtype == factor.dtype:
            return scaled(
                y, factor
            ) + learnt, {}  # half the passes over (tokens, out); in bfloat16 c - 1 would be lost in c
        else:
            kept = y
        return y + scaled(kept, (factor - 1).to(dtype)) + learnt, {}

    def penalty(self, stats: Stats, modules: int) -> None:
        return None

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        return None

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        """diag(c) (W0 + s (B A - B0 A0))."""
        factor = rescaling(params, frozen, weight, self.detach_norm)
        return factor[:, None] * (weight + displacement.update(params, frozen))

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        """The pair, of rank 2r for a start away from zero, and m as it is."""
        dtype = params["A"].dtype
        return Exported(displacement.inward(params, frozen, dtype), _outward(params, frozen), params["magnitude"])


def row_norms(weight: Float[Tensor, "out in"]) -> Float[Tensor, " out"]:
    """|W_i|, summed in float64 by blocks of rows."""
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in _blocks(weight)])


def rescaling(
    params: Params, frozen: Frozen, weight: Float[Tensor, "out in"], detach_norm: bool
) -> Float[Tensor, " out"]:
    """c = m / |V|, in the factors' own dtype; 0 for a row without length."""
    dtype = params["A"].dtype
    A, B = displacement.inward(params, frozen, dtype), _outward(params, frozen)
    if detach_norm:
        A, B = A.detach(), B.detach()
    across = torch.cat([A @ part.to(dtype).mT for part in _blocks(weight)], dim=-1)  # (directions, out)
    square = frozen["row_norm"].square() + (B * (2 * across + (A @ A.mT) @ B)).sum(0)
    return params["magnitude"] / square.clamp(min=torch.finfo(dtype).tiny).sqrt()


def _outward(params: Params, frozen: Frozen) -> Float[Tensor, "directions out"]:
    """s [dB B0], in the factors' own dtype: s and c go into the factor, whose gradient is a product, and not over the
    tokens, where each would keep a (tokens, out) tensor for backward."""
    dtype = params["B"].dtype
    return displacement.outward(params, frozen, dtype) * displacement.scale(frozen, dtype)[:, None]


def _blocks(weight: Float[Tensor, "out in"]) -> tuple[Tensor, ...]:
    """Rows that are cast together: no second copy of a large weight in another dtype."""
    return weight.split(max(1, BLOCK // weight.shape[1]))
