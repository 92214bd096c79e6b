"""Two slots, written aside and renamed; a damaged one falls back to the other."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ablora.store.atomic import Corrupted, replace

SLOTS = ("a.safetensors", "b.safetensors")


class Saved(NamedTuple):
    """A run's state at the end of a step."""

    tensors: dict[str, Tensor]
    counters: dict[str, int]


def save(folder: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
    """Write the older slot anew; the newer one stays whole until the rename."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {"counters": json.dumps(dict(counters)), "sha256": _digest(plain)}
    oldest = min(SLOTS, key=lambda name: _age(folder / name))
    replace(folder / oldest, lambda aside: save_file(plain, aside, metadata=metadata))


def load(folder: Path) -> Saved | None:
    """The newest whole slot; None where there is none; Corrupted where there are only damaged ones."""
    present = [folder / name for name in SLOTS if (folder / name).exists()]
    whole, broken = [], []
    for path in present:
        try:
            whole.append(_read(path))
        except (SafetensorError, OSError, ValueError) as error:
            broken.append((path, error))
    if broken and not whole:
        path, error = broken[0]
        legal = "a whole checkpoint; delete the checkpoint folder to train from the first step"
        raise Corrupted(str(path), str(error), legal)
    for path, error in broken:
        warnings.warn(f"{path} is damaged ({error}); going on from the other slot", stacklevel=2)
    return max(whole, key=lambda saved: (saved.counters["step"], saved.counters["evaluated"]), default=None)


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _age(path: Path) -> int:
    """Modification time; an absent or damaged slot is the first to be written."""
    try:
        with safe_open(path, framework="pt"):
            return path.stat().st_mtime_ns
    except (SafetensorError, OSError):
        return -1


def _read(path: Path) -> Saved:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
        metadata = file.metadata() or {}
    if _digest(tensors) != metadata.get("sha256"):
        raise ValueError("its sha256 is not the one written into it")
    return Saved(tensors, json.loads(metadata["counters"]))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()
