"""Adapters, whoever trained them: what each adds to each module of its base."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ablora.spec import BadInput
from ablora_analysis.measure.base_weights import BaseWeights
from ablora_analysis.measure.update import Update

WHOLE, EXPECTED = "update", "expected"
"""The part of an adapter that is its whole update: of one pair, of a mixture."""


class NotMeasured(BadInput):
    """A run of a method that leaves no update of weights to be measured here: not a fault of the run."""


class Part(NamedTuple):
    """A module's update, or one expert's."""

    update: Update
    rank: int
    """How many of its directions are compared at most: the run's rank, an expert's share of it."""
    gates: str
    """What the expected update of a mixture was weighted with: "measured" mean gates or "uniform" ones; else ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A checked adapter; its factors are read module by module."""

    id: str
    base: BaseWeights
    ranks: Mapping[str, int]
    """Low-rank directions by module, in the base's order of names."""
    content: str
    """sha256 of everything that its measures depend on beside the base."""
    parts: Callable[[str], dict[str, Part]]
    """A module's parts: WHOLE, or EXPECTED and `expert 0` ... `expert E-1`."""
    start: Callable[[str], Float[Tensor, "rank in"] | None]
    """A module's A0, None where it is not known."""


def require_module(base: BaseWeights, path: Path, module: str) -> tuple[int, int]:
    """The (out, in) of a module of the base; refuses an adapter of a base that this one is not."""
    found = base.shape(module)
    if found is None:
        raise BadInput(f"{path}: {module}", "absent", f"a linear module of the base {base.folder}")
    return found
