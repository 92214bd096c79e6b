"""Dropout masks of a pack: stateless, in row order, the same alone and in any pack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.seeds import fold


@dataclass(frozen=True, slots=True)
class Draw:
    """One run's place in its own life: what its masks depend on, beside the module."""

    seed: int
    step: int
    micro: int
    p: float


def keep_mask(draw: Draw, module: str, shape: tuple[int, int]) -> Float[Tensor, "tokens in"]:
    """1/(1-p) where a feature is kept, 0 where it is dropped.

    A fresh generator per (run seed, step, micro-step, module), so masks are the same under recomputation, beside any
    pack-mates, and with padding behind (a longer draw has the shorter as its prefix). Four 16-bit numbers are read
    from each 64-bit draw: measured at a quarter of the time of `F.dropout` on two cores; p is met to 2^-16.
    """
    tokens, features = shape
    generator = torch.Generator().manual_seed(fold("dropout", draw.seed, draw.step, draw.micro, module))
    count = tokens * features
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    kept = bits.view(torch.int16)[:count].view(shape) >= -(2**15) + round(draw.p * 2**16)
    return kept.to(torch.float32) / (1 - draw.p)


def pack_mask(draws: Sequence[Draw], module: str, shape: tuple[int, int]) -> Float[Tensor, "runs tokens in"] | None:
    """The masks of all runs; None if none of them drops anything."""
    if all(draw.p == 0 for draw in draws):
        return None
    return torch.stack([keep_mask(d, module, shape) if d.p > 0 else torch.ones(shape) for d in draws])
