"""The contract of a structure: how a run's factors act on its tokens.

`apply` is a pure function of ONE run's tensors, written for torch.vmap over runs: no boolean indexing, no `.item()`,
no in-place scatter, no global random numbers (measured: these fail or draw other numbers under vmap). Ranks and
experts of a pack are padded with zeros, so everything that is not linear in the factors takes masks from `frozen`.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablora.method.init._base import Start

Params = Mapping[str, Tensor]
"""Trainable tensors of one module and run: A (rank, in), B (rank, out), and what the structure adds."""
Frozen = Mapping[str, Tensor]
"""Constants of one module and run: A0, B0 where the start is not zero, scale (rank,), masks."""
Stats = Mapping[str, Tensor]


class Context(NamedTuple):
    """What a structure is told beside its input."""

    dropped: Float[Tensor, "tokens in"]
    """The input after the adapter's dropout (the input itself where there is none)."""
    real: Bool[Tensor, " tokens"]
    """False for padding."""
    per_token: bool = False
    """Whether reports of single tokens are wanted: an evaluation looks at them, training would pay for them."""
    weight: Float[Tensor, "out in"] | None = None
    """The base weight, one for all runs of a pack."""
    bias: Float[Tensor, " out"] | None = None
    """The base layer's bias, which `y` contains; None where there is none."""
    drops: bool = False
    """Whether `dropped` may differ from the input: False in evaluations and where no run of the pack drops anything."""


class Unmergeable(ValueError):  # noqa: N818 -- what the structure is
    """The structure's update depends on the token: no weight holds it."""


class Exported(NamedTuple):
    """An update as a layer of PEFT's LoRA with scaling 1 holds it, rank first."""

    A: Float[Tensor, "directions in"]
    B: Float[Tensor, "directions out"]
    """With s in it."""
    magnitude: Float[Tensor, " out"] | None = None
    """DoRA's; None: the update is B A."""


class Factors(NamedTuple):
    """One run's tensors in one module, by role."""

    params: Mapping[str, Tensor]
    """What `Structure.apply` gets as params: trained, or held still by the run's update."""
    frozen: Frozen


class Shape(NamedTuple):
    """A module's and its factors' sizes."""

    out_features: int
    in_features: int
    rank: int


@runtime_checkable
class Structure(Protocol):
    """One frozen dataclass per way of acting."""

    @property
    def experts(self) -> int:
        """Experts among which the rank is divided; 1 for a single pair."""
        ...

    @property
    def split_matters(self) -> bool:
        """Whether its penalty depends on how a batch is cut into micro-batches."""
        ...

    def group(self) -> Hashable:
        """Structures with equal keys run in one vmap; `apply` may depend on nothing of self beyond the key."""
        ...

    def check_rank(self, rank: int) -> None:
        """Refuse a rank that the structure cannot divide."""
        ...

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        """Trainable tensors beside A and B, at their start, with the padded dimension first; `weight` is the base's."""
        ...

    def count_extra(self, shape: Shape) -> int:
        """How many numbers `extra` holds, by formula."""
        ...

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        """Masks and fixed numbers that `apply` reads from `frozen`."""
        ...

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        """The adapted output from the base's `y = W0 x + b`, and what penalties and records need."""
        ...

    def penalty(self, stats: Stats, modules: int) -> Float[Tensor, ""] | None:
        """One module's share, of `modules`, of what is added to the run's loss; None: nothing ever."""
        ...

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        """Change a run's factors in place after the optimizer's step, whose gradients are still there.

        `modules` are all of the run's; `state` is the structure's own, empty at first, and saved with checkpoints;
        `step` counts from 1.
        """
        ...

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        """The weight that acts as base and adapter together; raises Unmergeable where there is none."""
        ...

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        """The update in PEFT's terms, in the factors' own dtype; raises Unmergeable where there is none."""
        ...


@runtime_checkable
class SharesA(Protocol):
    """What a structure has beside that if experts read the same rows of A."""

    def inward_rank(self, rank: int) -> int:
        """Rows of A where B has `rank`; all of B's blocks of so many rows start alike."""
        ...


def inward_rank(structure: Structure, rank: int) -> int:
    """Rows of A where B has `rank`."""
    return structure.inward_rank(rank) if isinstance(structure, SharesA) else rank


def with_start(start: Start) -> dict[str, Tensor]:
    """The frozen copies that the displacement form subtracts; none where B starts at zero."""
    return {} if start.B is None else {"A0": start.A.clone(), "B0": start.B.clone()}
