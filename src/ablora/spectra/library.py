"""Decompositions once per weight: kept in memory within a process, on disk across runs and analyses."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablora.spectra.decompose import Spectrum, decompose
from ablora.store import cache, tensors
from ablora.store.atomic import Corrupted

REVISION = 2
"""Raised when `decompose` gives other numbers for a weight, or the file has another form. Part of the file's name."""


class Library:
    """Spectra of weights, by the weight's content; without a folder (None) nothing is written."""

    def __init__(self, folder: Path | None):
        self._folder = folder

    def spectrum(self, weight: Float[Tensor, "out in"], indices: Int[Tensor, " wanted"]) -> Spectrum:
        """A spectrum that keeps at least the wanted triplets.

        A file that lacks some is made again with the union, so vectors are stored for what presets asked for and no
        more (all of them would be as large as the model, twice).
        """
        if self._folder is None:
            return decompose(weight, indices)
        path = self._folder / "spectra" / f"{weight_key(weight)}.safetensors"

        def read(file: Path) -> Spectrum | None:
            spectrum = _read(file)
            return spectrum if spectrum.positions(indices) is not None else None

        def make() -> Callable[[Path], None]:
            kept = _read(path).indices if path.exists() else indices[:0]
            spectrum = decompose(weight, torch.cat([kept, indices]))
            return lambda aside: _write(aside, spectrum)

        return cache.fetch(path, read, make)

    def expect(self, weight: Float[Tensor, "out in"], wanted: Sequence[Int[Tensor, " _triplets"]]) -> None:
        """Decompose once for all who will ask: one after another they would each make the file again."""
        if self._folder is not None and len(wanted) > 1:
            self.spectrum(weight, torch.cat(list(wanted)))


def weight_key(weight: Tensor) -> str:
    """The content of a weight: dtype, shape and bytes."""
    plain = weight.detach().to("cpu").contiguous()
    header = f"spectrum {REVISION} {plain.dtype} {tuple(plain.shape)}".encode()
    return hashlib.sha256(header + plain.view(torch.uint8).numpy().tobytes()).hexdigest()[:32]


def _write(path: Path, spectrum: Spectrum) -> None:
    tensors.write(path, spectrum._asdict())


def _read(path: Path) -> Spectrum:
    try:
        found, _ = tensors.read(path)
        return Spectrum(*(found[name] for name in Spectrum._fields))
    except (tensors.Damaged, KeyError) as error:
        legal = "a decomposition; delete this file and it is made again from the weight"
        raise Corrupted(os.fspath(path), str(error), legal) from error
