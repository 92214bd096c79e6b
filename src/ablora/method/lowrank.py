"""A method is four choices."""

from dataclasses import dataclass, field
from typing import Any

from ablora.method.crossings import check_crossings
from ablora.spec import LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """A low-rank adaptation method: where the factors start, how large their product counts, how they act on a token,
    and how gradients become steps. Named methods are presets of these four and carry no code.

    `name` is a label: two presets that compose to the same four choices are the same run.
    """

    name: str = field(metadata=LABEL)
    init: Any
    scaling: Any
    structure: Any
    update: Any

    def __post_init__(self) -> None:
        check_crossings(self.init, self.scaling, self.structure, self.update)

    @property
    def split_matters(self) -> bool:
        """Whether the cut into micro-batches changes what is learnt, without dropout."""
        return self.structure.split_matters
