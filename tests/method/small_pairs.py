"""Pairs of a few numbers, their full gradient, and the product they add."""

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_pair(rank: int = 4, out: int = 12, into: int = 9, seed: int = 0) -> tuple[Factors, Tensor]:
    """A pair whose gradients are those of a full gradient G: G_A = s B^T G, G_B = s G A^T (factors rank first)."""
    A, B, G, s = normal(rank, into, seed=seed), normal(rank, out, seed=seed + 1), normal(out, into, seed=seed + 2), 2.0
    params = {"A": Parameter(A), "B": Parameter(B)}
    params["A"].grad, params["B"].grad = s * B @ G, (s * G @ A.mT).mT.contiguous()
    return Factors(params, {"scale": torch.full((rank,), s, dtype=torch.float64)}), G


def product(pair: Factors) -> Tensor:
    return (pair.params["B"] * pair.frozen["scale"][:, None]).mT.detach() @ pair.params["A"].detach()
