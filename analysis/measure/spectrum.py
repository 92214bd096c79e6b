"""The size and the shape of an update's spectrum, and which of W0's directions it moves."""

import torch
from jaxtyping import Float
from torch import Tensor

from ablora_analysis.measure.update import Update


def effective_ranks(sigma: Float[Tensor, " h"]) -> dict[str, float]:
    """Over how many directions a spectrum is spread; each is k for k equal singular values, and NaN for no spectrum.

    stable_rank         ||.||_F^2 / ||.||_2^2
    entropy_rank        exp H(p), p = sigma / sum sigma (natural logarithm)
    energy_entropy_rank exp H(q), q = sigma^2 / sum sigma^2
    participation_rank  (sum sigma^2)^2 / sum sigma^4
    nuclear_rank        sum sigma / sigma_1
    count_1pct          how many exceed 0.01 sigma_1
    count_10pct         how many exceed 0.1 sigma_1

    Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007), for exp H(p).
    """
    s = sigma.double()
    if len(s) == 0 or s[0] == 0:
        names = ("stable", "entropy", "energy_entropy", "participation", "nuclear")
        return {**{f"{name}_rank": float("nan") for name in names}, "count_1pct": 0.0, "count_10pct": 0.0}
    s = s / s[0]
    square = s.square()
    found = {
        "stable_rank": square.sum(),
        "entropy_rank": _entropy(s).exp(),
        "energy_entropy_rank": _entropy(square).exp(),
        "participation_rank": square.sum().square() / square.square().sum(),
        "nuclear_rank": s.sum(),
        "count_1pct": (s > 0.01).sum(),
        "count_10pct": (s > 0.1).sum(),
    }
    return {name: float(value) for name, value in found.items()}


def _entropy(weights: Tensor) -> Tensor:
    p = weights / weights.sum()
    return -torch.special.xlogy(p, p).sum()


def energy(sigma: Float[Tensor, " h"], counts: list[int]) -> dict[str, float]:
    """energy_at_k: the share of ||dW||_F^2 that the first k directions hold; NaN for no spectrum."""
    square = sigma.double().square()
    return {f"energy_at_{k}": float(square[:k].sum() / square.sum()) if len(square) else float("nan") for k in counts}


def moved(update: Update, u: Float[Tensor, "r out"], v: Float[Tensor, "r in"]) -> Float[Tensor, " r"]:
    """|u_i^T W v_i - sigma_i| = |u_i^T dW v_i| for singular pairs (u_i, v_i) of W0, W = W0 + dW: how far the update
    stretches each of W0's own directions (what it adds beside them does not show)."""
    return ((u.double() @ update.B) * (v.double() @ update.A.mT)).sum(1).abs()


def top_left_vectors(
    W: Float[Tensor, "out in"], update: Update, start: Float[Tensor, "q in"], count: int, rounds: int = 3
) -> Float[Tensor, "count out"]:
    """The first left singular vectors of W + dW by subspace iteration, without forming the sum.

    `start` spans what they are likely to be made of: W's own kept directions, the update's, and some random ones.
    """
    B, A = update.B.to(W.dtype), update.A.to(W.dtype)
    X = torch.linalg.qr(start.to(W.dtype).mT)[0]
    for _ in range(rounds):
        Y = torch.linalg.qr(W @ X + B @ (A @ X))[0]
        X = torch.linalg.qr(W.mT @ Y + A.mT @ (B.mT @ Y))[0]
    Q, R = torch.linalg.qr(W @ X + B @ (A @ X))
    return (Q @ torch.linalg.svd(R)[0])[:, :count].mT


def largest_cosines(U: Float[Tensor, "count out"], kept: Float[Tensor, "kept out"]) -> Float[Tensor, " count"]:
    """For each row of U its largest |cosine| with a row of `kept`: an intruder dimension has a small one.

    Source: arXiv:2410.21228 (intruder dimensions).
    """
    return (U.double() @ kept.double().mT).abs().amax(1)
