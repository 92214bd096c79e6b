"""Interpolated modified Kneser-Ney n-grams over token ids, by sorting integer codes.

Chen and Goodman 1999, "An empirical study of smoothing techniques", section 3: with c the counts at the highest order
and the numbers of distinct left neighbours N1+(. h w) below it,

    p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h .) + gamma(h) p(w | h'),   gamma(h) = sum_k D_k N_k(h .) / c(h .)
    D_1 = 1 - 2Y n2/n1,  D_2 = 2 - 3Y n3/n2,  D_3+ = 3 - 4Y n4/n3,  Y = n1 / (n1 + 2 n2)

h' is h without its oldest token; a context never seen passes p(w | h') on; order 0 is uniform over the vocabulary. The
counts of counts n_k are each order's own. We differ in one thing: n-grams that start at a document's start also count
left neighbours below the highest order (some toolkits keep their raw counts there).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


class Level(NamedTuple):
    """One order: sorted n-gram codes with counts, sorted context codes with c(h .) and sum_k D_k N_k(h .)."""

    codes: Int64[np.ndarray, " grams"]
    counts: Int64[np.ndarray, " grams"]
    contexts: Int64[np.ndarray, " contexts"]
    totals: Int64[np.ndarray, " contexts"]
    held_back: Float64[np.ndarray, " contexts"]
    discounts: Float64[np.ndarray, " 4"]


def discounts(counts: Int64[np.ndarray, " grams"]) -> Float64[np.ndarray, " 4"]:
    """D by count (0, 1, 2, 3 or more), from the counts of counts.

    Clipped to [0.01, count]: a toy corpus can ask for less, and then a context would leave nothing for unseen words.
    """
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    pairs = ((n1, n2), (n2, n3), (n3, n4))
    raw = [k - (k + 1) * y * following / own if own else 0.5 * k for k, (own, following) in enumerate(pairs, 1)]
    return np.array([0.0, *(min(max(d, 0.01), float(k)) for k, d in enumerate(raw, 1))])


def make_level(codes: Int64[np.ndarray, " grams"], counts: Int64[np.ndarray, " grams"], token_bits: int) -> Level:
    """The sums that a query needs, from sorted distinct codes; a context's n-grams lie next to each other."""
    d = discounts(counts)
    contexts, first = np.unique(codes >> token_bits, return_index=True)
    totals = np.add.reduceat(counts, first)
    held_back = np.add.reduceat(d[np.minimum(counts, 3)], first)
    return Level(codes, counts, contexts, totals, held_back, d)


def find(sorted_codes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each wanted code its place, and whether it is there."""
    place = np.minimum(np.searchsorted(sorted_codes, wanted), len(sorted_codes) - 1)
    return place, sorted_codes[place] == wanted


class KneserNey:
    """An n-gram model over ids 0..vocab_tokens-1; each document is scored from `order - 1` start tokens."""

    def __init__(self, documents: Sequence[np.ndarray], vocab_tokens: int, order: int = 5, start: int = 0) -> None:
        self.vocab_tokens, self.order, self.start = vocab_tokens, order, start
        self.token_bits = max(1, int(vocab_tokens - 1).bit_length())
        if order < 1 or self.token_bits * order > 62:
            raise ValueError(f"order={order}: codes of {self.token_bits} bits a token must fit 62 bits, and order >= 1")
        codes, counts = np.unique(np.concatenate([self.codes(d) for d in documents]), return_counts=True)
        levels = [make_level(codes, counts, self.token_bits)]
        for lower in range(order - 1, 0, -1):
            codes, counts = np.unique(codes & self.mask(lower), return_counts=True)
            levels.append(make_level(codes, counts, self.token_bits))
        self.levels = levels[::-1]

    def mask(self, tokens: int) -> np.int64:
        """Keeps the newest `tokens` tokens of a code."""
        return np.int64((1 << (self.token_bits * tokens)) - 1)

    def codes(self, document: np.ndarray) -> Int64[np.ndarray, " tokens"]:
        """Each token with its order-1 predecessors as one integer, the token itself in the lowest bits."""
        padded = np.concatenate([np.full(self.order - 1, self.start), document]).astype(np.int64)
        codes = np.zeros(len(document), dtype=np.int64)
        for age in range(self.order - 1, -1, -1):
            codes = (codes << self.token_bits) | padded[self.order - 1 - age : len(padded) - age]
        return codes

    def probabilities(self, codes: Int64[np.ndarray, " queries"]) -> Float64[np.ndarray, " queries"]:
        """p(token | predecessors) for codes as `codes` makes them."""
        p = np.full(len(codes), 1.0 / self.vocab_tokens)
        for tokens, level in enumerate(self.levels, 1):
            code = codes & self.mask(tokens)
            place, seen = find(level.codes, code)
            count = np.where(seen, level.counts[place], 0)
            context, known = find(level.contexts, code >> self.token_bits)
            kept = np.maximum(count - level.discounts[np.minimum(count, 3)], 0.0)
            p = np.where(known, (kept + level.held_back[context] * p) / level.totals[context], p)
        return p

    def nats(self, document: np.ndarray) -> float:
        """Total -log p of a document's tokens."""
        return float(-np.log(self.probabilities(self.codes(document))).sum())
