"""How much of W0 and of the update lies in a pair of subspaces, and by how much the update amplifies it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.seeds import generator

FRAMES = 4
"""Random frames per side; every left one meets every right one."""


class Frames(NamedTuple):
    """Random orthonormal frames of both sides of a weight."""

    u: Float[Tensor, "frames r out"]
    v: Float[Tensor, "frames r in"]


class Row(NamedTuple):
    """One row of the table: norms within U, V."""

    norm_w: float
    norm_update: float

    @property
    def amplification(self) -> float:
        """||U^T dW V||_F / ||U^T W0 V||_F; infinite where W0 has nothing there."""
        return self.norm_update / self.norm_w if self.norm_w > 0 else float("inf")


def projected_norm(W: Float[Tensor, "out in"], U: Float[Tensor, "r1 out"], V: Float[Tensor, "r2 in"]) -> float:
    """||U W V^T||_F: U^T W V of the papers, with directions as rows."""
    return float((U.to(W.dtype) @ W @ V.to(W.dtype).mT).double().norm())


def expected_random(norm: float, rank: int, out_features: int, in_features: int) -> float:
    """||W0||_F r / sqrt(m n): the root mean square of ||U^T W0 V||_F over random U and V, exactly.

    Check: 97.36 * 64 / 4096 = 1.52 where arXiv:2406.09044 table 7 has 1.50.
    """
    return norm * rank / (out_features * in_features) ** 0.5


def random_frames(out_features: int, in_features: int, rank: int, name: str) -> Frames:
    """Frames that depend on the module's name, its shape and the rank alone: all adapters meet the same ones."""
    left, right = (
        torch.randn(FRAMES, size, rank, dtype=torch.float64, generator=generator("projection", name, side, size, rank))
        for side, size in (("left", out_features), ("right", in_features))
    )
    return Frames(torch.linalg.qr(left)[0].mT, torch.linalg.qr(right)[0].mT)


def norm_in_frames(frames: Frames, left: Float[Tensor, "out k"], right: Float[Tensor, "k in"] | None = None) -> float:
    """Root mean square of ||U^T X V||_F over all pairs of frames; X is `left`, or the product of both factors."""
    dtype = left.dtype
    a = frames.u.to(dtype) @ left
    b = frames.v.to(dtype) if right is None else frames.v.to(dtype) @ right.mT
    return float(torch.einsum("fik,gjk->fgij", a, b).double().square().sum((2, 3)).mean().sqrt())
