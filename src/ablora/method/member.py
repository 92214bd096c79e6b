"""One run of a pack as the adapters see it, and one module as its start does."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from ablora.method.full_moe import FullMoE
from ablora.method.init._base import Brought, DataDriven, Site
from ablora.method.layer import Layer, out_in, weight_of
from ablora.method.lowrank import LowRank
from ablora.method.seeds import generator
from ablora.method.structure._base import inward_rank
from ablora.spec import AdapterSpec
from ablora.spectra.statistics import Collected


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a pack, as the adapters see it."""

    method: LowRank | FullMoE | None
    """None: the untouched base, for evaluations that compare with it."""
    rank: int
    adapter: AdapterSpec
    seed: int
    statistics: Collected | None = None
    """What a data-driven start asked to know of the base."""


def site_of(name: str, linear: Layer, member: Member, method: LowRank, rank: int) -> Site:
    """One module as its start sees it; s is the one of the run's rank, whatever rank the module has."""
    experts, rows = method.structure.experts, inward_rank(method.structure, rank)
    brought = isinstance(method.init, Brought)
    s = method.init.scale(name) if brought else method.scaling(*out_in(linear), member.rank // experts)
    sums = None if member.statistics is None else member.statistics.of(name)
    own = experts if rows == rank else 1
    return Site(weight_of(linear), rows, own, s, generator("init", member.seed, name), sums, name)


def wanted(name: str, linear: Layer, member: Member, rank: int) -> Int[Tensor, " triplets"] | None:
    """The triplets of the module's weight that the member's start asks for; None for one that asks for none, or for
    those of another matrix, which it makes of data."""
    method = member.method
    if not isinstance(method, LowRank) or rank == 0 or isinstance(method.init, DataDriven):
        return None
    return method.init.indices(site_of(name, linear, member, method, rank))
