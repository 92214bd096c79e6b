"""Adapters that Hugging Face PEFT saved: what merging them adds to the untouched base."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ablora.method.import_peft import PeftAdapter
from ablora.method.import_peft import open_peft as open_saved
from ablora.method.init._base import Site, Triplets
from ablora.method.init.saved import Saved
from ablora.method.seeds import generator
from ablora.spec import check
from ablora.spectra.library import Library
from ablora_analysis.measure import dense, update
from ablora_analysis.measure.adapters import WHOLE, Adapter, Part
from ablora_analysis.measure.base_weights import BaseWeights


def open_peft(folder: Path, base: Path | None = None, library: Library | None = None) -> Adapter:
    """A folder that PEFT's `save_pretrained` wrote, checked against its base.

    `library`: where decompositions are kept, which an unconverted PiSSA needs.
    """
    saved = open_saved(folder)
    weights = BaseWeights(_base(saved, base))
    saved.require(weights.shapes, str(weights.folder))
    start = partial(_start, saved, weights, library or Library(None))
    return Adapter(
        id=str(folder),
        base=weights,
        ranks={module: saved.config.rank(module) for module in saved.modules},
        content=saved.content,
        parts=partial(_parts, saved, weights, start),
        start=lambda module: start(module).get("A0"),
    )


def _base(saved: PeftAdapter, base: Path | None) -> Path:
    named = saved.config.tree.get("base_model_name_or_path")
    if base is None:
        legal = "a local folder; say where the base is with --base FOLDER (or --base pico)"
        field = f"{saved.config.path}: base_model_name_or_path"
        check(isinstance(named, str) and Path(named).is_dir(), field, named, legal)
    return base or Path(str(named))


def _start(saved: PeftAdapter, base: BaseWeights, library: Library, module: str) -> dict[str, Tensor]:
    """A0 and B0 of a start that the base gives again (PiSSA, OLoRA), else nothing: PEFT does not say where it began."""
    if saved.config.residual is None:
        return {}
    init, weight = Saved(path=str(saved.folder)), base.weight(module)
    site = Site(weight, saved.config.rank(module), 1, saved.config.scale(module), generator("none"), module=module)
    indices = init.indices(site)
    triplets = None
    if indices is not None:
        spectrum = library.spectrum(weight, indices)
        at = spectrum.positions(indices)
        assert at is not None
        triplets = Triplets(spectrum.u[at], spectrum.sigma[indices], spectrum.v[at])
    start = init(site, triplets)
    assert start.B is not None
    return {"A0": start.A, "B0": start.B}


def _parts(
    saved: PeftAdapter, base: BaseWeights, start: Callable[[str], dict[str, Tensor]], module: str
) -> dict[str, Part]:
    tensors, rank, s = saved.read(module), saved.config.rank(module), saved.config.scale(module)
    scale = torch.full((rank,), s, dtype=torch.float64)
    if saved.kind == "adalora":
        scale = scale * tensors["E"][:, 0].double()
    own = update.pair({"A": tensors["A"], "B": tensors["B"], "scale": scale, **start(module)})
    if saved.kind == "dora":
        own = dense.rescaled(own, base.weight(module).double(), tensors["magnitude"].double())
    return {WHOLE: Part(own, rank, "")}
