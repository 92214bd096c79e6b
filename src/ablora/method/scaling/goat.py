"""GOAT's scaling."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class GoatScaling:
    """The scale at which the first step of a zero-started pair has the size of full fine-tuning's.

    s = sqrt(3 n eta / r),   n the module's input features, r the rank of one expert, eta = lr_full / lr_lora.
    It makes E[s^2 A^T A] = eta I for A uniform in +-1/sqrt(n), whose variance is 1/(3n).

    Source: arXiv:2502.16894v4 theorem 3.5.
    Differs: from the theorem's statement, which says A ~ U(+-sqrt(6/n)) where its proof uses +-1/sqrt(n) (we follow
        the proof); from algorithm 1, which prints rho for r; from the released scripts, which use alpha / r_e because
        the formula is not reachable there (Facico/GOAT-PEFT@ef4d21a layer.py): that is `scaling: alpha_over_r`.
    """

    revision: ClassVar[int] = 1
    eta: float

    def __post_init__(self) -> None:
        check(self.eta > 0, "eta", self.eta, "a positive number: lr of full fine-tuning over lr of the factors")

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        return math.sqrt(3 * in_features * self.eta / rank)
