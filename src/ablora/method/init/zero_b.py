"""LoRA's start: a random A, B at zero."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ablora.method.init._base import Site, Start, Triplets
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroB:
    """Start from a random A and a zero B: the adapted model is the base, and only B moves at the first step.

    kaiming:  A ~ U(-1/sqrt(n), 1/sqrt(n)),   gaussian:  A ~ N(0, std^2)   (std null: 1/r);   B = 0.
    n is the module's input features, so the variance of the first is 1/(3n).

    Source: arXiv:2106.09685 section 4.1 (Gaussian); microsoft/LoRA@c4593f0 loralib/layers.py and huggingface/peft
        0.21.2 tuners/lora/layer.py (Kaiming with a = sqrt(5), the default; "gaussian" with std 1/r).
    Differs: drawn in float32 on the CPU from the run's own generator, whatever the device.
    """

    revision: ClassVar[int] = 1
    distribution: Literal["kaiming", "gaussian"]
    std: float | None = None

    def __post_init__(self) -> None:
        legal = "a positive number, or null for 1/r; null with distribution kaiming"
        check(self.std is None or (self.std > 0 and self.distribution == "gaussian"), "std", self.std, legal)

    def indices(self, site: Site) -> None:
        return None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        n = site.weight.shape[1]
        A = torch.empty(site.rank, n)
        if self.distribution == "kaiming":
            A.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=site.generator)
        else:
            A.normal_(0.0, self.std or 1 / (site.rank // site.experts), generator=site.generator)
        return Start(A, None)
