"""The contract of a routing: which experts a token gets, and how much of each."""

from collections.abc import Hashable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._base import Frozen, Params


class Routed(NamedTuple):
    """One module's decision on its tokens."""

    weights: Float[Tensor, "tokens experts"]
    """What each expert's output counts: rows sum to 1."""
    chosen: Float[Tensor, "tokens experts"]
    """1 where an expert is one of a token's, without gradient."""
    judged: Float[Tensor, "tokens experts"]
    """What the balance loss averages over tokens: the router's probabilities, unless a routing says otherwise."""


@runtime_checkable
class Routing(Protocol):
    """One frozen dataclass per rule. By symmetry of a random router the mean weight of each of E experts is 1/E at the
    start, which is what the structure subtracts a start at."""

    def group(self) -> Hashable:
        """Routings with equal keys run in one vmap; the call may depend on nothing of self beyond the key."""
        ...

    def check_experts(self, experts: int) -> None:
        """Refuse a number of experts that the rule cannot route to."""
        ...

    def extra(self, in_features: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Trainable tensors beside the router's matrix, at their start."""
        ...

    def count_extra(self, in_features: int) -> int:
        """How many numbers `extra` holds, by formula."""
        ...

    def constants(self, experts: int) -> dict[str, Tensor]:
        """Fixed numbers that the call reads from `frozen`, where `present` is 0 for experts that a pack pads with."""
        ...

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        p: Float[Tensor, "tokens experts"],
    ) -> Routed:
        """The decision, from the router's softmax over present experts."""
        ...
