"""A start whose product is zero though neither factor is."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ablora.method.init._base import Site, Start, Triplets

SHRINK = 10.0
"""The source's divisor of both factors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orthogonal:
    """Start from two random factors with rows and columns in complementary subspaces: B0 A0 = 0, and both learn.

    Q (r, r) a random rotation, X ~ N(0, 1) of shape (n, r/2), Y ~ N(0, 1) of shape (r/2, m), for each expert:
    A0 = (X Q[0::2])^T / 10,   B0 = Y^T Q[1::2] / 10,   so B0 A0 = Y^T Q[1::2] Q[0::2]^T X^T / 100 = 0.

    Source: huggingface/peft 0.21.2 tuners/lora/layer.py (orthogonal_init), which names
        datta0.github.io/posts/rethink-lora-init.
    Differs: B0 A0 is zero only as far as rounding goes, so the start is subtracted like any other (`displacement`):
        step 0 is the base bit for bit, for r (m + n) fixed numbers; without rounding nothing changes. An odd rank is
        served, where the source refuses it: A0 gets ceil(r/2) of Q's rows and B0 the rest; at r = 1, B0 = 0. In a
        mixture every expert's product is zero by itself.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> None:
        return None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        (out_features, in_features), experts, size = site.weight.shape, site.experts, site.rank // site.experts

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(experts, *shape, generator=site.generator)

        q, _ = torch.linalg.qr(normal(size, size))
        for_a, for_b = q[:, 0::2], q[:, 1::2]
        A = (normal(in_features, for_a.shape[1]) @ for_a).mT / SHRINK
        B = (normal(out_features, for_b.shape[1]) @ for_b).mT / SHRINK
        return Start(A=A.flatten(0, 1), B=B.flatten(0, 1))
