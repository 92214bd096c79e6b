"""Adapters to tidy tables: one row per value, sorted; never a nested dict, never a silent gap."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from ablora.spectra.library import Library
from ablora_analysis.measure import pairs
from ablora_analysis.measure.adapters import EXPECTED, WHOLE, Adapter
from ablora_analysis.measure.base_view import BaseView
from ablora_analysis.measure.base_weights import BaseWeights
from ablora_analysis.measure.pairs import Block, Named
from ablora_analysis.measure.rows import Row, Seen, projection_rows, see, spectrum_rows, subspace_rows
from ablora_analysis.measure.update import decompose

HEAD = {"id": "str", "module": "str", "layer": "int64", "kind": "str", "part": "str"}
TAIL = {"reason": "str", "gates": "str"}
OWN = {
    "subspace": {
        "side": "str", "against": "str", "i": "int64", "j": "int64",
        "phi": "float64", "null": "float64", "null_low": "float64", "null_high": "float64",
    },
    "projection": {
        "basis": "str", "rank": "int64", "norm_w": "float64", "norm_update": "float64", "amplification": "float64",
        "expected_random": "float64",
    },
    "spectrum": {"measure": "str", "value": "float64"},
}  # fmt: skip
ROWS: dict[str, Callable[[Seen], Iterator[Row]]] = {
    "subspace": subspace_rows,
    "projection": projection_rows,
    "spectrum": spectrum_rows,
}
NAMES = (*OWN, "phi", "experts")
"""`phi` compares whole updates of two adapters, `experts` the experts of one mixture (id_b is id)."""


class Pair(NamedTuple):
    """Two adapters to compare, by id."""

    a: str
    b: str


def measure(adapters: Sequence[Adapter], wanted: Iterable[Pair], library: Library) -> dict[str, pd.DataFrame]:
    """Every measure of every adapter, and phi of the wanted pairs. One base weight is in memory at a time."""
    rows: dict[str, list[Row]] = {name: [] for name in OWN}
    found: dict[str, list[Block]] = {"phi": [], "experts": []}
    pairs_by_first: dict[str, list[str]] = {}
    for pair in wanted:
        pairs_by_first.setdefault(pair.a, []).append(pair.b)
    for base in dict.fromkeys(adapter.base for adapter in adapters):
        own = [adapter for adapter in adapters if adapter.base == base]
        for module in dict.fromkeys(module for adapter in own for module in adapter.ranks):
            here = {a.id: _parts(a, module, view) for view in [_view(base, module, own, library)] for a in own
                    if module in a.ranks}  # fmt: skip
            for parts in here.values():
                for name, make in ROWS.items():
                    rows[name] += _filled(parts, module, make)
            found["phi"] += _between(here, pairs_by_first)
            found["experts"] += _within(here.values())
    out = {name: _frame(name, rows[name]) for name in OWN}
    return out | {name: pairs.frame(blocks) for name, blocks in found.items()}


def _view(base: BaseWeights, module: str, adapters: Iterable[Adapter], library: Library) -> BaseView:
    rank = max(adapter.ranks[module] for adapter in adapters if module in adapter.ranks)
    return BaseView(module, base.weight(module), rank, library)


def _parts(adapter: Adapter, module: str, view: BaseView) -> list[Named]:
    start = adapter.start(module)
    share = min(adapter.ranks.values()) / adapter.ranks[module]
    return [
        Named(adapter.id, see(name, part, decompose(part.update), view), start, round(share * part.rank))
        for name, part in adapter.parts(module).items()
    ]


def _filled(parts: Iterable[Named], module: str, make: Callable[[Seen], Iterator[Row]]) -> Iterator[Row]:
    for named in parts:
        head = {"id": named.id, "module": module, "layer": pairs.layer(module), "kind": pairs.kind(module)}
        head |= {"part": named.seen.part, "gates": named.seen.own.gates, "reason": ""}
        yield from ({**head, **row} for row in make(named.seen))


def _between(here: dict[str, list[Named]], wanted: dict[str, list[str]]) -> Iterator[Block]:
    """phi of whole updates."""
    whole = {run: n for run, parts in here.items() for n in parts if n.seen.part in (WHOLE, EXPECTED)}
    for a, others in wanted.items():
        for b in others:
            if a in whole and b in whole:
                yield from pairs.blocks(whole[a], whole[b])


def _within(adapters: Iterable[list[Named]]) -> Iterator[Block]:
    """phi of the experts of one mixture, each pair once."""
    for parts in adapters:
        own = [named for named in parts if named.seen.part not in (WHOLE, EXPECTED)]
        for k, first in enumerate(own):
            for second in own[k + 1 :]:
                # Experts start in blocks of their own, so the whole start says nothing of these two.
                yield from pairs.blocks(first._replace(start=None), second._replace(start=None))


def _frame(name: str, rows: list[Row]) -> pd.DataFrame:
    kinds = {**HEAD, **OWN[name], **TAIL}
    frame = pd.DataFrame(rows, columns=pd.Index(list(kinds))).astype(kinds)  # pyright: ignore[reportArgumentType]
    return frame.sort_values(["id", "module", "part"], kind="stable", ignore_index=True)
