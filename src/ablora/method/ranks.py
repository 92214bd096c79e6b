"""The rank of every module of a run: the run's own, or what a start that looks at data makes of it."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ablora.method.init._base import DataDriven, Init, Site
from ablora.method.init._redistribution import Redistributes
from ablora.method.lowrank import LowRank
from ablora.method.structure._base import inward_rank
from ablora.spectra.library import Library


def redistributes(init: Init, rank: int) -> bool:
    """Whether modules may get other numbers of directions than the run's."""
    return isinstance(init, Redistributes) and init.most(rank) > rank


def data_decide(method: Any, rank: int | None) -> bool:
    """Whether a run's ranks by module, and so its trainable parameters, are known with its data and not before."""
    if not isinstance(method, LowRank) or rank is None:
        return False
    return redistributes(method.init, inward_rank(method.structure, rank))


def realised(init: Init, sites: Mapping[str, Site], library: Library) -> dict[str, int]:
    """Rows of A by module, from all modules' sites at the run's rank; 0: no adapter there."""
    if not isinstance(init, Redistributes) or not all(redistributes(init, site.rank) for site in sites.values()):
        return {name: site.rank for name, site in sites.items()}
    assert isinstance(init, DataDriven), "only data says how directions are shared out"

    def sigma(site: Site) -> Float[Tensor, " h"]:
        indices = init.indices(site)
        assert indices is not None
        return library.spectrum(init.matrix(site), indices).sigma

    return init.ranks(sites, sigma)
