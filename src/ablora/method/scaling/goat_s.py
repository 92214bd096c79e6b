"""GOAT-s: one scale per expert."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.scaling._base import Scaling
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class GoatS:
    """Scale the experts of weaker segments up, so that their first steps are less small beside the first one's.

    s_j = s_0 sqrt(sigma_0 / sigma_j),   sigma_j the sum of the singular values that expert j starts from.
    s_0 is the scale that `first` gives; a single pair has no other. Factors start with their own s_j, so that
    s_j B0_j A0_j is what it is under any scale; the first SGD step of the product, whose size goes as s_j sigma_j, then
    goes as sqrt(sigma_j) in place of sigma_j.

    Source: arXiv:2502.16894v4 appendix E, which means it for an s_0 that is tuned already. Not in the released code.
    Differs: s_0 is any other scaling's value (theorem 3.5's by default), for the paper names none.
    """

    revision: ClassVar[int] = 1
    first: Any

    def __post_init__(self) -> None:
        legal = "a mapping whose _target_ is another scaling, of one s per module"
        check(isinstance(self.first, Scaling) and not isinstance(self.first, GoatS), "first", self.first, legal)

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        return self.first(out_features, in_features, rank)

    def by_expert(self, s: float, sigma: Float[Tensor, "experts size"]) -> Float[Tensor, " experts"]:
        mass = sigma.double().sum(-1)
        legal = "a start from singular values above 0 for every expert (some of this weight's are 0)"
        check(bool((mass > 0).all()), "method.scaling", type(self).__name__, legal)
        return s * torch.sqrt(mass[0] / mass)
