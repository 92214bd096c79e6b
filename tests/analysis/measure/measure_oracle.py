"""The same measures from dense float64 matrices by numpy, with none of the code under test."""

from typing import Any

import numpy as np
from numpy import ndarray


def vectors(dense: ndarray, rank: int) -> tuple[ndarray, ndarray, ndarray]:
    """(U, sigma, V), vectors in columns, of the first `rank` triplets."""
    u, sigma, vh = np.linalg.svd(dense, full_matrices=False)
    return u[:, :rank], sigma[:rank], vh[:rank].T


def phi(x: ndarray, y: ndarray, i: int, j: int) -> float:
    """x, y with vectors in columns."""
    return float(np.linalg.norm(x[:, :i].T @ y[:, :j]) ** 2 / min(i, j))


def subspace(w: ndarray, dense: ndarray, rank: int) -> dict[tuple[str, str], float]:
    """phi(rank, rank) of the update with W's top and bottom directions, by (side, against)."""
    mine, base = vectors(dense, rank), vectors(w, min(w.shape))
    sides = {"left": (mine[0], base[0]), "right": (mine[2], base[2])}
    return {
        (side, against): phi(own, of_w[:, :rank] if against == "top" else of_w[:, -rank:], rank, rank)
        for side, (own, of_w) in sides.items()
        for against in ("top", "bottom")
    }


def projection(w: ndarray, dense: ndarray, rank: int) -> dict[str, tuple[float, float]]:
    """(||U^T W V||, ||U^T dW V||) by basis."""
    out = {}
    for basis, matrix in (("update", dense), ("top", w)):
        u, _, v = vectors(matrix, rank)
        out[basis] = (float(np.linalg.norm(u.T @ w @ v)), float(np.linalg.norm(u.T @ dense @ v)))
    return out


def spectrum(w: ndarray, dense: ndarray, rank: int) -> dict[str, float]:
    u, s, v = vectors(w, min(w.shape))
    sigma = np.linalg.svd(dense, compute_uv=False)
    p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    moved = np.abs(np.diag(u.T @ (w + dense) @ v) - s)
    tuned = np.linalg.svd(w + dense)[0]
    cosines = np.abs(tuned.T @ u).max(1)
    out: dict[str, Any] = {
        "frobenius": np.linalg.norm(dense),
        "spectral": sigma[0],
        "relative": np.linalg.norm(dense) / np.linalg.norm(w),
        "stable_rank": np.linalg.norm(dense) ** 2 / sigma[0] ** 2,
        "entropy_rank": np.exp(-sum(x * np.log(x) for x in p if x > 0)),
        "energy_entropy_rank": np.exp(-sum(x * np.log(x) for x in q if x > 0)),
        "participation_rank": (sigma**2).sum() ** 2 / (sigma**4).sum(),
        "nuclear_rank": sigma.sum() / sigma[0],
        f"energy_at_{rank}": (sigma[:rank] ** 2).sum() / (sigma**2).sum(),
        "energy_at_1": sigma[0] ** 2 / (sigma**2).sum(),
        "moved_top": moved[:rank].mean(),
        "moved_bottom": moved[-rank:].mean(),
        "moved_top_1": moved[0],
        "moved_bottom_1": moved[-1],
        "all_cosines": cosines,
    }
    return out
