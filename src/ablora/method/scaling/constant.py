"""A scaling that depends on nothing."""

from dataclasses import dataclass
from typing import ClassVar

from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """Scale by one number, whatever the module and the rank.

    s = value.

    Source: what alpha = r amounts to, which PiSSA (arXiv:2404.02948; GraphPKU/PiSSA@87f4db6) and MiLoRA
        (arXiv:2406.09044; sufenlp/MiLoRA@4740756 svd_init.py sets lora_alpha to the rank) prescribe: value 1.
    """

    revision: ClassVar[int] = 1
    value: float

    def __post_init__(self) -> None:
        check(self.value > 0, "value", self.value, "a positive number")

    def __call__(self, out_features: int, in_features: int, rank: int) -> float:
        return self.value
