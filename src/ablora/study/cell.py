"""One cell of a question: a point of its grid, before it is known which run that is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablora.spec import BadInput


@dataclass(frozen=True, slots=True)
class Cell:
    """A resolved plain tree, and how it differs from the question's other cells."""

    tree: Mapping[str, Any]
    """The fields of a RunSpec, as `ablora.tree.build` reads them."""
    labels: Mapping[str, Any]
    """Every swept axis with the value the user wrote: {"method": "lora", "train.lr": 0.001}."""
    overrides: tuple[str, ...]
    """The same as arguments that Hydra reads."""
    why: str = "grid"
    budget: Any = None
    """What the tree's rank was solved for: trainable parameters (a number), or a `method.budget.Reached`; None where
    the rank was given."""

    def blame(self, error: BadInput, others: int = 0) -> BadInput:
        """The mistake, with the cell it is in."""
        if not self.labels:
            return error
        named = " ".join(f"{key}={value}" for key, value in self.labels.items())
        more = f", and {others} more cells are not legal" if others else ""
        return BadInput(error.field_name, error.value, f"{error.legal} (in the cell {named}{more})")
