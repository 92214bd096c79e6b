"""From what a pack's runs ask to a model in training: the one place that knows every kind of method."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ablora.method.adaptation import Adaptation
from ablora.method.attach import attach
from ablora.method.full import Full
from ablora.method.member import Member
from ablora.method.peft_tuner import Peft
from ablora.method.tuned import tune
from ablora.method.whole_model import WholeModel
from ablora.spec import RunSpec, check
from ablora.spectra.library import Library
from ablora.spectra.statistics import Collected


def adapt(
    model: PreTrainedModel, specs: Sequence[RunSpec], seen: Sequence[Collected | None], cache: Path | None
) -> Adaptation:
    """Make the runs' trainable parts on a base. `seen`: what data-driven starts asked to know of it; decompositions
    are kept in `cache`. What is no low-rank method has a pack of its own."""
    for spec in specs:
        alone = len(specs) == 1 or spec.method.packs
        check(alone, "method", spec.method.name, "in a pack of one run: it trains what its pack-mates share")
    method, adapter = specs[0].method, specs[0].adapter
    match method:
        case Full():
            return WholeModel(model, method, adapter)
        case Peft():
            return tune(model, method, adapter, specs[0].seed)
        case _:
            members = [Member(s.method, s.rank or 0, s.adapter, s.seed, known) for s, known in zip(specs, seen)]
            return attach(model, members, Library(cache))
