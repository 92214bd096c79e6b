"""How many numbers a low-rank method trains in a module: as a number, or as a formula from the same lines of code."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

from ablora.method.lowrank import LowRank
from ablora.method.structure._base import Shape, inward_rank

Monomial = tuple[str, ...]
"""Its symbols, sorted; none: a constant."""


def trained_in(method: LowRank, shape: Shape) -> int:
    """Trainable numbers of a module: r (m + n), less what the update does not train, plus what the structure adds."""
    rank, update = shape.rank, method.update
    sizes = {"A": inward_rank(method.structure, rank) * shape.in_features, "B": rank * shape.out_features}
    return sum(size for role, size in sizes.items() if update.trains(role)) + method.structure.count_extra(shape)


def formula(method: LowRank) -> "Terms":
    """The same of a module (m, n) at rank r, which the method's structure divides."""
    symbols = [Terms({(name,): Fraction(1)}) for name in ("m", "n", "r")]
    return Terms() + cast(Any, trained_in(method, Shape(*cast(Any, symbols))))


class Terms:
    """A sum of products of symbols, which takes sums, products and exact quotients by integers."""

    def __init__(self, terms: Mapping[Monomial, Fraction] | None = None):
        self.terms = {key: c for key, c in (terms or {}).items() if c}

    def __add__(self, other: "Terms | int") -> "Terms":
        out = dict(self.terms)
        for key, c in _of(other).terms.items():
            out[key] = out.get(key, Fraction(0)) + c
        return Terms(out)

    def __mul__(self, other: "Terms | int") -> "Terms":
        out: dict[Monomial, Fraction] = {}
        for a, c in self.terms.items():
            for b, d in _of(other).terms.items():
                key = tuple(sorted((*a, *b)))
                out[key] = out.get(key, Fraction(0)) + c * d
        return Terms(out)

    def __floordiv__(self, other: int) -> "Terms":
        return Terms({key: c / other for key, c in self.terms.items()})

    __radd__, __rmul__ = __add__, __mul__

    def at(self, **values: int) -> Fraction:
        """Its value for given symbols."""
        total = Fraction(0)
        for key, c in self.terms.items():
            for name in key:
                c *= values[name]
            total += c
        return total

    def __str__(self) -> str:
        """With r before a bracket: `r (m + n/4) + 4 n`."""
        per_rank = {tuple(s for s in key if s != "r"): c for key, c in self.terms.items() if "r" in key}
        rest = {key: c for key, c in self.terms.items() if "r" not in key}
        ranked = _sum(per_rank)
        if len(per_rank) > 1 or ranked == "1":
            ranked = "r" if ranked == "1" else f"r ({ranked})"
        elif ranked:
            ranked = f"r {ranked}"
        return " + ".join(part for part in (ranked, _sum(rest)) if part) or "0"


def _of(value: "Terms | int") -> Terms:
    return value if isinstance(value, Terms) else Terms({(): Fraction(value)})


def _sum(terms: Mapping[Monomial, Fraction]) -> str:
    """m before n before constants."""
    return " + ".join(_product(key, c) for key, c in sorted(terms.items(), key=lambda item: item[0] or ("~",)))


def _product(key: Monomial, c: Fraction) -> str:
    above = ([str(c.numerator)] if c.numerator != 1 or not key else []) + list(key)
    return " ".join(above) + (f"/{c.denominator}" if c.denominator != 1 else "")
