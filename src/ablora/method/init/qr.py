"""OLoRA's start: the head of the weight's QR decomposition."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ablora.method.init._base import Site, Start, Triplets


@dataclass(frozen=True, kw_only=True, slots=True)
class Qr:
    """Start from the first r columns of Q and rows of R: B orthonormal, and B A the weight's own first part.

    W = Q R (reduced),   B0 = Q[:, :r],   A0 = R[:r].   s is not divided out, so s B0 A0 grows with s.
    The first r columns of W lie in the span of B0: which directions these are depends on the order of the features.

    Source: arXiv:2406.01775; huggingface/peft 0.21.2 tuners/lora/layer.py (olora_init).
    Differs: the base weight stays as it is. The signs of Q's columns are LAPACK's, as there; B A does not depend on
        them.
    """

    revision: ClassVar[int] = 1

    def indices(self, site: Site) -> None:
        return None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        dtype = torch.promote_types(site.weight.dtype, torch.float32)
        q, r = torch.linalg.qr(site.weight.detach().to("cpu", dtype))
        return Start(A=r[: site.rank], B=q[:, : site.rank].mT)
