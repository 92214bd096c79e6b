"""How many numbers a low-rank method trains in a module: counted, and as the formula that the count follows."""

from fractions import Fraction
from typing import NamedTuple

from ablora.method.lowrank import LowRank
from ablora.method.structure._base import Shape, inward_rank


def trained_in(method: LowRank, shape: Shape) -> int:
    """Trainable numbers of a module: r (m + n), less what the update does not train, plus what the structure adds."""
    rank, update = shape.rank, method.update
    sizes = {"A": inward_rank(method.structure, rank) * shape.in_features, "B": rank * shape.out_features}
    return sum(size for role, size in sizes.items() if update.trains(role)) + method.structure.count_extra(shape)


class Formula(NamedTuple):
    """r (a m + b n + c) + d m + e n + f, of a module (m, n) at rank r."""

    per_rank: tuple[Fraction, Fraction, Fraction]
    """a, b, c."""
    fixed: tuple[Fraction, Fraction, Fraction]
    """d, e, f."""

    def at(self, m: int, n: int, r: int) -> Fraction:
        (a, b, c), (d, e, f) = self
        return r * (a * m + b * n + c) + d * m + e * n + f

    def __str__(self) -> str:
        ranked, terms = _sum(self.per_rank), sum(map(bool, self.per_rank))
        if terms > 1:
            ranked = f"r ({ranked})"
        elif terms:
            ranked = "r" if ranked == "1" else f"r {ranked}"
        return " + ".join(part for part in (ranked, _sum(self.fixed)) if part) or "0"


def formula(method: LowRank) -> Formula:
    """The formula of `trained_in`, which is linear in m, n and r each: read off its differences."""
    r, m, n = method.structure.experts, 1000, 1000
    low, high = (_linear(method, rank, m, n) for rank in (r, 2 * r))
    a, b, c = ((y - x) / r for x, y in zip(low, high))
    d, e, f = (2 * x - y for x, y in zip(low, high))
    return Formula((a, b, c), (d, e, f))


def _linear(method: LowRank, rank: int, m: int, n: int) -> tuple[Fraction, Fraction, Fraction]:
    """What a module costs at a rank by each of its outputs and inputs, and beside them."""
    base, by_m, by_n = (trained_in(method, Shape(*sides, rank)) for sides in ((m, n), (m + 1, n), (m, n + 1)))
    over_m, over_n = Fraction(by_m - base), Fraction(by_n - base)
    return over_m, over_n, base - over_m * m - over_n * n


def _sum(coefficients: tuple[Fraction, Fraction, Fraction]) -> str:
    """`m + n/4 + 1`, of what is not 0."""
    return " + ".join(_product(c, name) for c, name in zip(coefficients, ("m", "n", "")) if c)


def _product(c: Fraction, name: str) -> str:
    above = f"{c.numerator} {name}" if c.numerator != 1 and name else name or str(c.numerator)
    return above if c.denominator == 1 else f"{above}/{c.denominator}"
