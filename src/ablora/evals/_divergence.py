"""How far one distribution over the vocabulary is from another, position by position: pure functions of logits."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F


class SoftCrossEntropy(NamedTuple):
    """Of a model against a base's distribution p, per position, in nats; cross_entropy = floor + kl."""

    cross_entropy: Float64[Tensor, "*positions"]
    """-sum_v p log q"""
    floor: Float64[Tensor, "*positions"]
    """H(p), which no model q gets below"""
    kl: Float64[Tensor, "*positions"]
    """KL(p || q)"""


def soft_cross_entropy(
    base: Float[Tensor, "*#positions vocab"], tuned: Float[Tensor, "*#positions vocab"]
) -> SoftCrossEntropy:
    """Both at the SAME position: targets are distributions, so nothing is shifted.

    In float64: KL is a sum of terms of both signs that cancel, and of float32 logarithms it keeps 1e-6 at best. It is
    summed as p (log p - log q), exactly 0 for equal logits.
    """
    return _soft(base.double().log_softmax(-1), tuned.double().log_softmax(-1))


def _soft(log_p: Tensor, log_q: Tensor) -> SoftCrossEntropy:
    p = log_p.exp()
    floor = -(p * log_p).sum(-1)
    kl = (p * (log_p - log_q)).sum(-1)
    return SoftCrossEntropy(floor + kl, floor.expand_as(kl), kl)


class Compared(NamedTuple):
    """A tuned model beside its base on labels: per position (rows tuned, one column per label)."""

    soft: SoftCrossEntropy
    loss: Float64[Tensor, "*rows labels"]
    """-log q(label), in nats"""
    base_loss: Float64[Tensor, " labels"]
    agree: Bool[Tensor, "*rows labels"]
    """Whether both find the same token the likeliest"""


def against_base(
    base: Float[Tensor, "labels vocab"], tuned: Float[Tensor, "*rows labels vocab"], labels: Int[Tensor, " labels"]
) -> Compared:
    """Soft and hard losses of any number of tuned models at positions whose next tokens are `labels`."""
    log_p, log_q = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
    index = labels[:, None]
    loss = -log_q.gather(-1, index.expand(*log_q.shape[:-1], 1)).squeeze(-1)
    agree = tuned.argmax(-1) == base.argmax(-1)
    return Compared(_soft(log_p, log_q), loss, F.nll_loss(log_p, labels, reduction="none"), agree)
