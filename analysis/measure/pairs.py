"""phi between two updates, for all i and j, as blocks that make one long table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ablora_analysis.measure.rows import NAN, ZERO, Seen
from ablora_analysis.measure.subspace import phi

COLUMNS = (
    "id", "module", "layer", "kind", "part", "id_b", "part_b", "side", "i", "j", "phi", "null", "shared_start",
    "reason",
)  # fmt: skip
GRID = 16
"""Up to so many directions every i and j has a row; of more, so many evenly spaced ones up to the least rank of all
modules of both, so that all have these, and the update's own last one."""
_START_TOLERANCE = 1e-5


class Named(NamedTuple):
    """A part of an adapter and where its factors started."""

    id: str
    seen: Seen
    start: Float[Tensor, "rank in"] | None
    least: int | None = None
    """The least rank of this part in any module of the adapter; None: this one's."""


class Block(NamedTuple):
    """phi of one pair, module and side; the first eight are equal in all its rows."""

    id: str
    module: str
    part: str
    id_b: str
    part_b: str
    side: str
    shared_start: bool | None
    reason: str
    d: int
    i: np.ndarray
    j: np.ndarray
    phi: np.ndarray


def blocks(a: Named, b: Named) -> Iterator[Block]:
    """Left and right; a single row with a reason where an update is zero."""
    shared = same_start(a.start, b.start)
    for s, side in enumerate(("left", "right")):
        own, other = ((x.seen.d.u, x.seen.d.v)[s][: x.seen.rank] for x in (a, b))
        base = a.seen.base
        named = (a.id, base.name, a.seen.part, b.id, b.seen.part, side, shared)
        if len(own) == 0 or len(other) == 0:
            none = np.zeros(1, dtype=np.int64)
            yield Block(*named, ZERO, base.shape[s], none, none, np.array([NAN]))
            continue
        least = min(x.least or x.seen.rank for x in (a, b))
        i, j = grid(len(own), least), grid(len(other), least)
        values = phi(own, other).numpy()[np.ix_(i - 1, j - 1)]
        yield Block(*named, "", base.shape[s], np.repeat(i, len(j)), np.tile(j, len(i)), values.ravel())


def grid(rank: int, least: int | None = None) -> np.ndarray:
    """The i that are written down for a subspace of `rank` directions where others have `least`, or as many."""
    if rank <= GRID:
        return np.arange(1, rank + 1)
    common = min(rank, rank if least is None else least)
    spaced = np.linspace(1, common, min(common, GRID)).round().astype(np.int64)
    return np.unique([*spaced, rank])


def frame(found: Sequence[Block]) -> pd.DataFrame:
    """One row per value, sorted; `null` is E phi = max(i, j) / d for a random subspace of R^d."""
    found = sorted(found, key=lambda block: block[:6])
    counts = [len(block.i) for block in found]
    i, j, value = (_joined([getattr(block, name) for block in found]) for name in ("i", "j", "phi"))
    d = np.repeat(np.array([block.d for block in found], dtype=np.float64), counts)
    shared = [block.shared_start for block in found]
    known = "boolean" if None in shared else "bool"
    columns = {
        "i": i.astype(np.int64),
        "j": j.astype(np.int64),
        "phi": value.astype(np.float64),
        "null": np.where(i > 0, np.maximum(i, j) / d, NAN),
        "shared_start": pd.array(shared, dtype=known).repeat(counts),
        "layer": np.repeat(np.array([layer(block.module) for block in found], dtype=np.int64), counts),
        "kind": _words([kind(block.module) for block in found], counts),
    }
    for name in ("id", "module", "part", "id_b", "part_b", "side", "reason"):
        columns[name] = _words([getattr(block, name) for block in found], counts)
    return pd.DataFrame({name: columns[name] for name in COLUMNS})


def layer(module: str) -> int:
    """The first number in a module's name; -1 where there is none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def kind(module: str) -> str:
    """The last part of a module's name: q_proj, down_proj, ..."""
    return module.rpartition(".")[2]


def same_start(a: Float[Tensor, "r1 n"] | None, b: Float[Tensor, "r2 n"] | None) -> bool | None:
    """Whether both A began with the same rows, up to a factor (the scale of an initialisation); None: not known.

    The rows that both have are compared: a start of rank 4 is the head of the start of rank 8 of the same seed.
    """
    if a is None or b is None:
        return None
    rows = min(len(a), len(b))
    a, b = (x[:rows].double() / x[:rows].double().norm() for x in (a, b))
    return bool(torch.allclose(a, b, rtol=0.0, atol=_START_TOLERANCE))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _words(values: Sequence[str], counts: Sequence[int]) -> pd.api.extensions.ExtensionArray:
    return pd.array(values, dtype="str").repeat(counts)
