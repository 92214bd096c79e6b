"""A smooth surface through noisy trials, and how well it is known: a Gaussian process, its lengths averaged over.

Trials of a search lie where the tuner put them, each once. So a mean by value has nothing to average, and the best
trial is lucky as well as good; a surface uses all of them, and says how little it knows where none was tried.

    y = c + f(z) + e,   f ~ GP(0, v k),   e ~ N(0, v g),   k(z, z') = prod_d Matern_5/2(|z_d - z'_d| / l_d),
    z = x but for z_2 = x_2 + h x_1

h slants the valley: a larger scaling asks for a smaller learning rate. Lengths l_d, slant h and noise ratio g run over
a lattice (`LENGTHS`, `SLANTS`, `NOISES`) and are weighed by the evidence; c has a broad normal prior, v the prior
1 / v, both integrated out. With some twenty trials the most likely lengths alone would claim more than is known;
docs/tuning.md has the measured coverage.

Source: Rasmussen & Williams 2006, sections 2.7, 4.2.1 and 5.4.1.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4)
"""In ranges of a coordinate: from several bends within what was tried to nearly a line."""
SLANTS = (0.0, 0.5, 1.0)
"""In ranges of the second coordinate over the range of the first."""
NOISES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Variance of a trial's noise over that of the surface."""
CONSTANT = 10.0
"""Prior variance of c, in units of v: the values are centred, so this is broad."""
JITTER = 1e-6
"""A thousandth of the surface's standard deviation: what keeps points that nearly coincide from being singular."""
CHOSEN = 24
"""How many choices of lengths and noise the draws are shared out over, by probability."""


class Fit(NamedTuple):
    """One choice of lengths and noise, fitted."""

    lengths: np.ndarray
    slant: float
    factor: np.ndarray
    """Lower Cholesky factor of the trials' covariance, in units of v."""
    weights: np.ndarray
    """K^-1 y."""
    misfit: float
    """y^T K^-1 y."""
    log_evidence: float


class Surface(NamedTuple):
    """Every choice of lengths and noise with its probability."""

    x: np.ndarray
    """The trials (n, d), each coordinate in [0, 1]."""
    centre: float
    fits: tuple[Fit, ...]
    probability: np.ndarray

    def draws(self, at: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
        """(number, len(at)): whole surfaces, without noise, as probable as the trials make them; `number` is a multiple
        of CHOSEN."""
        rng = np.random.default_rng(seed)
        ends = (rng.random() + np.arange(CHOSEN)) / CHOSEN
        chosen = np.minimum(np.searchsorted(np.cumsum(self.probability), ends), len(self.fits) - 1)
        shares = np.bincount(chosen) * number // CHOSEN
        parts = [self._of(fit, at, n, rng) for fit, n in zip(self.fits, shares) if n]
        return self.centre + np.concatenate(parts)

    def _of(self, fit: Fit, at: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        at, x = _slanted(at, fit.slant), _slanted(self.x, fit.slant)
        across = _kernel(at, x, fit.lengths)
        reduced = solve_triangular(fit.factor, across.T, lower=True)
        covariance = _kernel(at, at, fit.lengths) - reduced.T @ reduced
        root = np.linalg.cholesky(covariance + JITTER * np.eye(len(at)))
        variance = 0.5 * fit.misfit / rng.gamma(0.5 * len(self.x), size=number)
        steps = rng.normal(size=(number, len(at))) @ root.T
        return across @ fit.weights + np.sqrt(variance)[:, None] * steps


def surface(x: np.ndarray, y: np.ndarray) -> Surface:
    """Fit trials (n, d), coordinates in [0, 1], to their values (n)."""
    centre = float(np.mean(y))
    fits = tuple(_fits(x, y - centre))
    evidence = np.array([fit.log_evidence for fit in fits])
    weight = np.exp(evidence - evidence.max())
    return Surface(x, centre, fits, weight / weight.sum())


def _fits(x: np.ndarray, y: np.ndarray) -> Iterator[Fit]:
    for slant, lengths in product(SLANTS if x.shape[1] > 1 else (0.0,), product(LENGTHS, repeat=x.shape[1])):
        slanted = _slanted(x, slant)
        smooth = _kernel(slanted, slanted, np.array(lengths))
        for noise in NOISES:
            factor = np.linalg.cholesky(smooth + (noise + JITTER) * np.eye(len(y)))
            weights = cho_solve((factor, True), y)
            misfit = max(float(y @ weights), 1e-12)
            evidence = -float(np.log(np.diag(factor)).sum()) - 0.5 * len(y) * np.log(misfit)
            yield Fit(np.array(lengths), slant, factor, weights, misfit, evidence)


def _slanted(x: np.ndarray, slant: float) -> np.ndarray:
    return x if slant == 0 else np.column_stack([x[:, 0], x[:, 1] + slant * x[:, 0], x[:, 2:]])


def _kernel(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The surface's covariance in units of v, with the constant's."""
    distance = np.sqrt(5) * np.abs(a[:, None, :] - b[None, :, :]) / lengths
    return CONSTANT + np.prod((1 + distance + distance**2 / 3) * np.exp(-distance), axis=2)
