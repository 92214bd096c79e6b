"""Which values of different axes do not go together, said before anything is queued."""

from typing import Any

import torch

from ablora.method.init._base import DataDriven, Init, Site
from ablora.method.scaling._base import PerExpert
from ablora.method.structure._base import Structure, inward_rank
from ablora.spec import check


def check_crossings(init: Init, scaling: Any, structure: Structure, update: Any) -> None:
    """Refuse (BadInput) combinations without a meaning, and name what does combine.

    Heads on one A start alike: neither a start nor a scale can differ between them, and a preconditioner that takes
    every expert for a pair of its own has no A to look at. One s per expert is read from the singular values of W0
    that each expert starts from, so a mixture needs a start that has them.
    """
    mixture = structure.experts > 1
    shares = inward_rank(structure, structure.experts) < structure.experts
    name = {"init": type(init).__name__, "scaling": type(scaling).__name__, "update": type(update).__name__}
    if shares:
        legal = "with method.structure.shared_a a start that is the same for all experts: any other init"
        check(not getattr(init, "by_segment", False), "init", name["init"], legal)
        legal = "with method.structure.shared_a a scaling of one s per module: any but goat_s"
        check(not isinstance(scaling, PerExpert), "scaling", name["scaling"], legal)
        legal = "with method.structure.shared_a an update that does not take every expert for a pair of its own: "
        legal += "plain, lora_plus, freeze_a"
        check(not getattr(update, "by_expert", False), "update", name["update"], legal)
    if mixture and isinstance(scaling, PerExpert):
        legal = "one s per expert needs a start from singular values of the weight (svd_segments, svd_principal, "
        legal += "svd_minor, svd_middle, svd_random), or a structure of one pair"
        check(_from_spectrum(init, structure.experts), "scaling", f"{name['scaling']} with {name['init']}", legal)


def _from_spectrum(init: Init, experts: int) -> bool:
    """Whether the directions of an initialisation are singular triplets of the weight."""
    if isinstance(init, DataDriven):
        return False
    weight = torch.empty(experts, experts, device="meta")  # for its shape alone
    return init.indices(Site(weight, experts, experts, 1.0, torch.Generator())) is not None
