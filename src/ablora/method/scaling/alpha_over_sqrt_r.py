"""rsLoRA's scaling."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaOverSqrtR:
    """Scale by alpha over the root of the rank, which keeps activations and gradients of one size as r grows.

    s = alpha / sqrt(r),   r the rank of one expert in a mixture (of the pair otherwise).

    Source: arXiv:2312.03732 theorem 3.2; huggingface/peft 0.21.2 tuners/lora/layer.py (use_rslora).
    Differs: nothing known.
    """

    revision: ClassVar[int] = 1
    alpha: float

    def __post_init__(self) -> None:
        check(self.alpha > 0, "alpha", self.alpha, "a positive number")

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        return self.alpha / math.sqrt(rank)
