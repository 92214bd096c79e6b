"""Fill the caches ahead of runs, by the same code and under the same locks as runs fill them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ablora.method.adapt import adapt
from ablora.method.init._base import DataDriven
from ablora.method.layer import Layer, weight_of
from ablora.method.targets import find_targets
from ablora.models.base import Base, load, without_weights
from ablora.spectra.library import Library
from ablora.store import cache as caches
from ablora.train.calibration import calibrate
from ablora.train.data import forget_encoded, items_of
from ablora.train.needs import Decompositions, Need, Tokens, indices_of, note


def prepare(needs: Sequence[Need], cache: Path) -> Iterator[tuple[Need, Mapping[Path, bool]]]:
    """Make what is needed, base by base; each need with its files, and whether each of them was made now.

    A base is read once for all that it is needed for, and a weight decomposed once for all starts that look at it.
    What was made before a death is there the next time.
    """
    forget_encoded()
    for need in needs:
        if isinstance(need, Tokens):
            with caches.watched() as files:
                items_of(need.spec, without_weights(need.spec.model), need.split, need.max_items, cache)
            note(need, files, cache)
            yield need, files
    starts = [need for need in needs if isinstance(need, Decompositions)]
    for _, same in groupby(sorted(starts, key=_base_of), key=_base_of):
        yield from _starts([*same], cache)


def _base_of(need: Need) -> str:
    return f"{need.spec.model.folder} {need.spec.model.dtype} {need.spec.adapter.targets}"


def _starts(needs: Sequence[Decompositions], cache: Path) -> Iterator[tuple[Need, Mapping[Path, bool]]]:
    """Those of one base and its targets."""
    base = load(needs[0].spec.model)
    blind = [need for need in needs if not isinstance(need.spec.method.init, DataDriven)]
    made = _decomposed(blind, base, cache)
    for need in sorted(needs, key=lambda need: -(need.spec.rank or 0)):  # of data too, the most triplets first
        with caches.watched() as files:
            seen = calibrate([need.spec], base, cache)
            adapt(base.model, [need.spec], seen, cache).detach()
        found = {path: made.get(path, False) or fresh for path, fresh in files.items()}
        note(need, found, cache)
        yield need, found


def _decomposed(needs: Sequence[Decompositions], base: Base, cache: Path) -> dict[Path, bool]:
    """Every weight once, with all triplets that any of the starts asks for: one start after the other would decompose
    it again for each."""
    layers = find_targets(base.model, needs[0].spec.adapter.targets) if needs else {}
    wanted: dict[Layer, list[Tensor]] = {layer: [] for layer in layers.values()}
    for need in needs:
        for layer, indices in indices_of(need.spec, layers):
            wanted[layer].append(indices)
    with caches.watched() as files:
        for layer, indices in wanted.items():
            if indices:
                Library(cache).spectrum(weight_of(layer), torch.cat(indices))
    return files
