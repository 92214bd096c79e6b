"""The contract of a structure that moves ranks from module to module while a run trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ablora.method.structure._base import Factors, Frozen, Shape
from ablora.spec import check

DIRECTIONS = frozenset({"A", "B", "A0", "B0"})
"""Roles with a row for every rank; the scale has a number."""
Variants = Mapping[str, Mapping[str, Tensor]]
"""By module and role: fixed tensors in place of the run's own, stacked over variants of it; what is absent stays."""
Losses = Callable[[Variants], Float64[Tensor, " variants"]]
"""Each variant's mean loss in nats on the probe's answer tokens, without dropout, with the factors as they stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The items on which variants of a run are compared: drawn by its seed, the same ones all through it."""

    split: Literal["validation", "train"]
    items: int

    def __post_init__(self) -> None:
        check(self.items >= 1, "items", self.items, "an integer of at least 1")


class Moved(NamedTuple):
    """What a reallocation did."""

    rewritten: Mapping[str, Bool[Tensor, " rows"]]
    """By module: rows of A and B that were given up or begun. What the optimizer knows of them is forgotten."""
    ranks: int
    """How many changed their module."""
    loss_nats: float
    """The run's own on the probe."""


@runtime_checkable
class Reallocates(Protocol):
    """What a structure has beside `Structure` if ranks move. A, B and the scale have more rows than a module's rank;
    a fixed tensor says which of them live, and rows that do not are zero."""

    rewrites: ClassVar[frozenset[str]]
    """Roles, fixed or trained, that a reallocation writes: a checkpoint has to hold them."""

    @property
    def probe(self) -> Probe: ...

    def rows(self, shape: Shape) -> int:
        """Rows of A and B in a module that begins with `shape.rank`."""
        ...

    def live(self, frozen: Frozen) -> int:
        """A module's rank now."""
        ...

    def due(self, step: int, max_steps: int) -> bool:
        """Whether ranks move after a step (from 1)."""
        ...

    def reallocate(
        self, modules: Mapping[str, Factors], losses: Losses, draw: Callable[[str], torch.Generator]
    ) -> Moved:
        """Move ranks, in place, and leave the function as it is but for what is given up. `draw`: the run's random
        numbers for a module at this step."""
        ...


def rows_of(structure: object, shape: Shape) -> int:
    """Rows of A and B in a module that begins with `shape.rank`."""
    return structure.rows(shape) if isinstance(structure, Reallocates) else shape.rank


def reallocating(method: object) -> Reallocates | None:
    """A method's structure, if its ranks move."""
    structure = getattr(method, "structure", None)
    return structure if isinstance(structure, Reallocates) else None
