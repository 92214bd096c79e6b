"""What phi is between a subspace and a random one: its expectation, exact, and a band by Monte Carlo."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

DRAWS = 4000
"""The band's ends are quantiles of so many draws; measured: they vary by 1 % of the band's width from seed to seed."""
_CHUNK = 500


class Band(NamedTuple):
    """Between which values 95 % of random subspaces are."""

    low: float
    high: float


def expectation(d: int, i: int, j: int) -> float:
    """E phi(i, j) = max(i, j) / d for a random i-dimensional and any j-dimensional subspace of R^d (exact)."""
    return max(i, j) / d


@cache
def band(d: int, i: int, j: int) -> Band:
    """The 2.5 % and 97.5 % quantiles of phi(i, j) for a random subspace of R^d, from seeded draws."""
    low, high = np.quantile(draws(d, i, j, np.random.default_rng([d, *sorted((i, j))])), [0.025, 0.975])
    return Band(float(low), float(high))


def draws(d: int, i: int, j: int, rng: np.random.Generator, count: int = DRAWS) -> Float[ndarray, " count"]:
    """phi(i, j) of `count` random subspaces of the smaller dimension with a fixed one of the larger.

    A random orthonormal frame is G (G^T G)^{-1/2} for a Gaussian G (d, i). Let the fixed subspace be the first j axes:
    the first j rows G1 of G enter phi, the others only through their Gram matrix S, which is Wishart with d - j degrees
    of freedom. So min(i, j) phi = ||L^{-1} G1^T||_F^2 with L L^T = G1^T G1 + S costs i x i matrices, whatever d.
    """
    i, j = sorted((i, j))
    return np.concatenate(list(_chunks(d, i, j, rng, count)))


def _chunks(d: int, i: int, j: int, rng: np.random.Generator, count: int) -> Iterator[ndarray]:
    for done in range(0, count, _CHUNK):
        size = min(_CHUNK, count - done)
        top = rng.standard_normal((size, j, i))
        factor = np.linalg.cholesky(top.swapaxes(1, 2) @ top + _wishart(d - j, i, rng, size))
        yield np.square(np.linalg.solve(factor, top.swapaxes(1, 2))).sum((1, 2)) / i


def _wishart(freedom: int, i: int, rng: np.random.Generator, count: int) -> Float[ndarray, "count i i"]:
    """X^T X for X (freedom, i) standard normal; by Bartlett's triangle T T^T where that is smaller."""
    if freedom < i:
        rest = rng.standard_normal((count, freedom, i))
        return rest.swapaxes(1, 2) @ rest
    triangle = np.tril(rng.standard_normal((count, i, i)), -1)
    diagonal = np.arange(i)
    triangle[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom - diagonal, size=(count, i)))
    return triangle @ triangle.swapaxes(1, 2)
