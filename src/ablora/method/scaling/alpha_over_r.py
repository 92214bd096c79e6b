"""LoRA's scaling."""

from dataclasses import dataclass
from typing import ClassVar

from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaOverR:
    """Scale by alpha over the rank, so that a change of rank asks for no new learning rate.

    s = alpha / r,   r the rank of one expert in a mixture (of the pair otherwise).

    Source: arXiv:2106.09685 section 4.1; huggingface/peft 0.21.2 tuners/lora/layer.py (update_layer). For mixtures
        Facico/GOAT-PEFT@ef4d21a goat/peta/src/goat/layer.py, which divides by the rank of one expert.
    Differs: nothing known.
    """

    revision: ClassVar[int] = 1
    alpha: float

    def __post_init__(self) -> None:
        check(self.alpha > 0, "alpha", self.alpha, "a positive number")

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        return self.alpha / rank
