"""A safetensors file that was checked once, tensor by tensor, and is read module by module afterwards."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ablora.store.atomic import Corrupted


class TensorFile(NamedTuple):
    """What a file holds; nothing of it is kept in memory."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    sha256: str

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}


def open_checked(path: Path) -> TensorFile:
    """The file's tensors by name and shape; refuses a file that is absent, cut, or holds a number that is no number."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {}
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                if not torch.isfinite(tensor).all():
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise Corrupted(f"{path}: {name}", f"{bad} of {tensor.numel()} not finite", "finite factors")
                shapes[name] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise Corrupted(str(path), str(error), "a whole safetensors file with the adapter's factors") from error
    with path.open("rb") as file:
        return TensorFile(path, shapes, hashlib.file_digest(file, "sha256").hexdigest())


def require_names(file: TensorFile, wanted: Iterable[str]) -> None:
    """Refuse missing and extra tensors, by name."""
    missing, extra = sorted(set(wanted) - file.shapes.keys()), sorted(file.shapes.keys() - set(wanted))
    if missing or extra:
        name, word = (missing[0], "missing") if missing else (extra[0], "not expected")
        count = len(missing) + len(extra)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise Corrupted(f"{file.path}: {name}", word + more, "exactly the tensors of the adapter's modules")


def require_shape(file: TensorFile, name: str, shape: tuple[int, ...], why: str) -> None:
    """Refuse a tensor of another shape than `why` (of the base, of the rank) makes necessary."""
    if file.shapes[name] != shape:
        raise Corrupted(f"{file.path}: {name}", file.shapes[name], f"of shape {shape}, {why}")
