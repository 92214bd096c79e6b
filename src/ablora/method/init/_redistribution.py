"""Directions shared out over modules by what the data give, in place of one rank for all."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.init._base import Site


@runtime_checkable
class Redistributes(Protocol):
    """What a data-driven initialisation has beside that if modules may get other ranks than the run's.

    The run's rank times the modules is then a budget of directions. s stays the one of the run's rank in all of them.
    """

    def most(self, rank: int) -> int:
        """Directions that one module may get at a run's rank; the rank itself: every module gets it."""
        ...

    def ranks(self, sites: Mapping[str, Site], sigma: Callable[[Site], Float[Tensor, " h"]]) -> dict[str, int]:
        """Directions of every module, in multiples of its experts; 0: no adapter there.

        `sites` are all adapted modules, in the model's order, at the run's rank; `sigma(site)` are all singular values
        of `matrix(site)`, descending, and what `indices(site)` names is kept for when the start asks for it.
        """
        ...


def share_out(shares: Mapping[str, Float[Tensor, " blocks"]], budget: int) -> dict[str, int]:
    """How many of its blocks every module gets when the `budget` largest shares of all are taken.

    Shares descend within a module. Of equal ones the earlier module's goes first; where there are fewer than the
    budget, all are taken.
    """
    joined = torch.cat(list(shares.values()))
    owner = torch.repeat_interleave(torch.tensor([len(own) for own in shares.values()]))
    taken = owner[joined.argsort(descending=True, stable=True)[:budget]].bincount(minlength=len(shares))
    return dict(zip(shares, taken.tolist()))
