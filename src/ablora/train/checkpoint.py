"""Two slots, written aside and renamed; a damaged one falls back to the other."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ablora.store import tensors as store
from ablora.store.atomic import Corrupted, replace

SLOTS = ("a.safetensors", "b.safetensors")
PROGRESS = ("step", "reallocated", "evaluated")
"""Counters that tell which of two states is the later one: after a step ranks move, then it is evaluated."""


class Saved(NamedTuple):
    """A run's state at the end of a step."""

    tensors: dict[str, Tensor]
    counters: dict[str, int]


def save(folder: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
    """Write the older slot anew; the newer one stays whole until the rename."""
    folder.mkdir(parents=True, exist_ok=True)
    oldest = min(SLOTS, key=lambda name: _age(folder / name))
    replace(folder / oldest, lambda aside: store.write(aside, tensors, json.dumps(dict(counters))))


def load(folder: Path) -> Saved | None:
    """The newest whole slot; None where there is none; Corrupted where there are only damaged ones."""
    present = [folder / name for name in SLOTS if (folder / name).exists()]
    whole, broken = [], []
    for path in present:
        try:
            whole.append(_read(path))
        except store.Damaged as error:
            broken.append((path, error))
    if broken and not whole:
        path, error = broken[0]
        legal = "a whole checkpoint; delete the checkpoint folder to train from the first step"
        raise Corrupted(str(path), str(error), legal)
    for path, error in broken:
        warnings.warn(f"{path} is damaged ({error}); going on from the other slot", stacklevel=2)
    return max(whole, key=lambda saved: [saved.counters.get(mark, 0) for mark in PROGRESS], default=None)


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else -1


def _read(path: Path) -> Saved:
    tensors, note = store.read(path)
    return Saved(tensors, json.loads(note))
