"""Sums over the tokens that went through one router: nothing is kept of single tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor


class Labels(NamedTuple):
    """The classes of a run's tokens in one pass."""

    answer: Int[Tensor, " tokens"]
    """1 for a token of the answer, 0 for one of the prompt."""
    frequency: Int[Tensor, " tokens"]
    """The token's frequency bin."""
    bins: int
    """Frequency bins over all passes."""


class Routes:
    """One module's sums, in float64 on the tokens' device."""

    def __init__(self, routable: Float64[Tensor, " experts"], bins: int):
        """`routable` is 0 for an expert that gets every token without the router's doing."""
        experts = len(routable)
        self.tokens, self.routable = 0, routable.cpu()
        self.probability, self.gate = _zeros(experts), _zeros(experts)
        self.together = _zeros(experts, experts)
        self.entropy, self.margin = _zeros(), _zeros()
        self.by_answer, self.by_frequency = _zeros(2, experts), _zeros(bins, experts)

    def add(
        self,
        p: Float64[Tensor, "tokens experts"],
        w: Float64[Tensor, "tokens experts"],
        chosen: Float64[Tensor, "tokens experts"],
        labels: Labels,
    ) -> None:
        """Router probabilities, gate weights, and 1 for the experts of a token."""
        self.tokens += len(p)
        self.probability = self.probability + p.sum(0).cpu()
        self.gate = self.gate + w.sum(0).cpu()
        self.together = self.together + (chosen.mT @ chosen).cpu()
        self.entropy = self.entropy + torch.special.entr(p).sum().cpu()
        top = p.topk(2, dim=-1).values
        self.margin = self.margin + (top[:, 0] - top[:, 1]).sum().cpu()
        self.by_answer = self.by_answer + _by_class(chosen, labels.answer, 2)
        self.by_frequency = self.by_frequency + _by_class(chosen, labels.frequency, labels.bins)

    def mean(self, total: Tensor) -> Tensor:
        """A sum per token."""
        return total / self.tokens

    def load(self) -> Float64[Tensor, " experts"]:
        """The share of tokens that each expert got; sums to k."""
        return self.mean(self.together.diagonal())

    def balance(self) -> Float64[Tensor, ""]:
        """(E/k) sum_i load_i P_i over the experts that are routed to: 1 when balanced."""
        load = self.load() * self.routable
        return self.routable.sum() / load.sum() * (load * self.mean(self.probability)).sum()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _by_class(chosen: Tensor, labels: Tensor, classes: int) -> Float64[Tensor, "classes experts"]:
    return chosen.new_zeros(classes, chosen.shape[1]).index_add_(0, labels, chosen).cpu()


def mutual_information(counts: Float64[Tensor, "classes experts"]) -> float:
    """sum_ce P(c, e) log P(c, e) / (P(c) P(e)) of a table of counts, in nats."""
    joint = counts / counts.sum()
    marginals = torch.special.entr(joint.sum(0)).sum() + torch.special.entr(joint.sum(1)).sum()
    return max((marginals - torch.special.entr(joint).sum()).item(), 0.0)  # rounding alone makes it negative
