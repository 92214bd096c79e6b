"""AdaLoRA's start: both factors random and small."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ablora.method.init._base import Site, Start, Triplets
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianBoth:
    """Start from small random factors on both sides; what acts at step 0 is the structure's concern: it weighs the
    directions with zero (`adalora`), or subtracts their product (a pair).

    A_ij ~ N(0, std^2),   B_ij ~ N(0, std^2).

    Source: huggingface/peft 0.21.2 tuners/adalora/layer.py (reset_lora_parameters) and QingruZhang/AdaLoRA@d10f5eb
        loralib/loralib/adalora.py, both with std 0.02.
    Differs: drawn in float32 on the CPU from the run's own generator, A before B.
    """

    revision: ClassVar[int] = 1
    std: float

    def __post_init__(self) -> None:
        check(self.std > 0, "std", self.std, "a positive number")

    def indices(self, site: Site) -> None:
        return None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        out_features, in_features = site.weight.shape
        A, B = torch.empty(site.rank, in_features), torch.empty(site.rank, out_features)
        for factor in (A, B):
            factor.normal_(0.0, self.std, generator=site.generator)
        return Start(A, B)
