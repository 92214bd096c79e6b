"""The contract of an evaluation: what needs a forward pass, for all members of a pack at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ablora.data._base import Dataset, Example
from ablora.data.encode import Encoded
from ablora.evals._kept import Kept
from ablora.method.adaptation import Adaptation
from ablora.models.base import Base
from ablora.store.run_folder import TEXT

__all__ = ["TEXT", "Evaluation", "Items", "Metrics", "Outcome"]


class Items(NamedTuple):
    """One member's items of one split, in order: as text and as tokens."""

    dataset: Dataset
    examples: tuple[Example, ...]
    encoded: Sequence[Encoded]


class Outcome(NamedTuple):
    """One member's result of one evaluation."""

    metrics: dict[str, float]
    """By name, with the unit in it."""
    records: list[dict[str, Any]]
    """One per item, each with its `item` id: comparisons are paired on items."""


@runtime_checkable
class Evaluation(Protocol):
    """One frozen dataclass per evaluation."""

    @property
    def split(self) -> str:
        """The split of the run's data set that it reads; `TEXT`: a corpus of its own, and no items are handed to it."""
        ...

    @property
    def max_items(self) -> int | None: ...

    def run(
        self, base: Base, adapted: Adaptation, members: Sequence[Items], kept: Kept | None = None
    ) -> Sequence[Outcome | None]:
        """Evaluate every member on its own items, without dropout and without gradients.

        A member without items is not asked. None for a member that is not asked, or to which the question does not
        apply: nothing is written of it. `kept`: what was found before a stop, and where to add to it.
        """
        ...


Metrics = Mapping[str, float]
