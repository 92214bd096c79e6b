"""The sign-flip test: exact whatever the distribution of the differences, if it is symmetric about zero."""

import numpy as np

from ablora.spec import check

EXACT, FLIPS = 20, 99_999
"""Up to this many seeds every flip is counted (2^19 sums); beyond, this many random ones."""


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p: the share of the sign patterns whose sum is at least as far from zero as the one seen (Fisher 1935).

    `differences` (seeds,), one per seed. The smallest value that n seeds can give is 2^(1 - n).
    """
    d = np.asarray(differences, dtype=float)
    check(d.size > 0 and bool(np.isfinite(d).all()), "differences", d.tolist(), "one finite number per seed")
    # Sums of the same numbers in another order differ in the last digits, and would not count as equal.
    seen = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if d.size > EXACT:
        signs = np.random.default_rng(0).integers(0, 2, (FLIPS, d.size), dtype=np.int8) * 2 - 1
        return float((1 + (np.abs(signs @ d) >= seen).sum()) / (1 + FLIPS))
    sums = d[:1]  # the first sign stays: a pattern and its mirror have one distance from zero
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= seen).mean())
