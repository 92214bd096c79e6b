"""From what a pack's members ask to a model in training: the one place that knows every kind of method."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ablora.method.adaptation import Adaptation
from ablora.method.attach import Member, attach
from ablora.spectra.library import Library


def adapt(model: PreTrainedModel, members: Sequence[Member], cache: Path | None) -> Adaptation:
    """Make the members' trainable parts on a base; decompositions are kept in `cache`."""
    return attach(model, members, Library(cache))
