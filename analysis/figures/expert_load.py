"""Where mixtures send their tokens: each expert's load by layer and kind of module, and which experts meet.

load          share of tokens that an expert got, over the mean of the E that are routed to: 1 when balanced
co-activation share of tokens that two experts both got, over the mean of all pairs: 1 as if each token's experts were
              drawn at random

Both are of each module's own records, so they hold also where tokens differ in how many experts they get: the mean of
the loads is k/E with k the module's mean, that of the pairs is the mean of k (k - 1) / (E (E - 1)) over tokens. An
expert that every token gets without the router's doing (a shared one) has load 1 here, is in neither mean and stands
first; with it another expert meets as often as it is chosen.

Experts that start at given parts of W0's spectrum are the same expert in every module and run. Any others are not: they
are put in order of their load in each module and run before means are taken, so that expert 1 is the busiest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ablora.store.atomic import Corrupted
from ablora.store.run_folder import folder_of
from ablora_analysis import table
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.measured import ordered
from ablora_analysis.figures.study import Study

_SPECTRAL = {"SvdSegments"}
"""Starts whose experts are named by their part of the spectrum."""
_NEEDED = ("load", "mean_gate", "mean_probability", "coactivation")


class Load(NamedTuple):
    """One mixture at its chosen rate; means over its runs."""

    setting: str
    dataset: str
    arm: str
    experts: int
    per_token: tuple[float, float]
    """Experts of a token, on average over a module's tokens: the least and the most of any module and run."""
    gates: bool
    """Whether all experts get every token, so that `load` is of their mean gate weights."""
    named: bool
    """Whether experts are the same in every module and run; otherwise they stand in order of their load."""
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    load: np.ndarray
    """(layers, kinds, experts), 1 when balanced; NaN where a layer lacks a kind."""
    together: np.ndarray
    """(experts, experts), mean over modules, 1 as if drawn at random; NaN on the diagonal, and where no two meet."""
    least: float
    """The least load of an expert in any module of any run, 1 when balanced."""
    ids: tuple[str, ...]


def place(module: str) -> tuple[int, str]:
    """Layer (-1 if none) and kind of a module by its dotted name: `model.layers.3.mlp.up_proj` is (3, "up_proj")."""
    parts = module.split(".")
    return next((int(part) for part in parts if part.isdigit()), -1), parts[-1]


def points(
    choices: Sequence[Choice], prepared: pd.DataFrame, records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Load]:
    """One per arm whose runs recorded their routing; `records` are the lines of evals/routing.jsonl by run."""
    inits = prepared.drop_duplicates("id").set_index("id")["init"]
    out = []
    for choice in choices:
        ids = [run for run in choice.ids if run in records]
        if ids:
            out.append(_load(choice, ids, str(inits[ids[0]]) in _SPECTRAL, [records[run] for run in ids]))
    return out


def _load(choice: Choice, ids: Sequence[str], named: bool, runs: Sequence[Sequence[Mapping[str, Any]]]) -> Load:
    places = sorted({place(record["item"]) for record in runs[0]})
    layers, kinds = sorted({layer for layer, _ in places}), ordered([kind for _, kind in places])
    every = [record for run in runs for record in run]
    experts = len(every[0]["load"])
    sums, counts = np.zeros((len(layers), len(kinds), experts)), np.zeros((len(layers), len(kinds), 1))
    met, least = [], np.inf
    for record in every:
        own, pairs = relative(record), together(record)
        order = np.arange(experts) if named else np.lexsort((-own, ~shared(record)))
        layer, kind = place(record["item"])
        at = layers.index(layer), kinds.index(kind)
        sums[at] += own[order]
        counts[at] += 1
        met.append(pairs[np.ix_(order, order)])
        least = min(least, float(own.min()))
    mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    k = [sum(record["load"]) for record in every]
    return Load(choice.setting, choice.dataset, choice.arm, experts, (min(k), max(k)), all(map(gates_alone, every)),
                named, tuple(layers), tuple(kinds), mean, _mean(met), least, tuple(ids))  # fmt: skip


def _mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Over the modules in which two experts meet at all; NaN where there is none."""
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    count = known.sum(0)
    return np.divide(np.where(known, stacked, 0).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)


def shared(record: Mapping[str, Any]) -> np.ndarray:
    """Which experts get every token without the router's doing: it gives them no probability."""
    load, p = (np.asarray(record[key], dtype=float) for key in ("load", "mean_probability"))
    return (load == 1) & (p == 0)


def gates_alone(record: Mapping[str, Any]) -> bool:
    """Whether every routed expert gets every token, and only gate weights tell them apart."""
    return bool((np.asarray(record["load"], dtype=float)[~shared(record)] == 1).all())


def relative(record: Mapping[str, Any]) -> np.ndarray:
    """Each expert's load, 1 when balanced; where all get every token, its mean gate weight instead."""
    return _over_mean(record["mean_gate" if gates_alone(record) else "load"], ~shared(record))


def _over_mean(values: Sequence[float], routed: np.ndarray) -> np.ndarray:
    """The routed ones over their mean; 1 for the others."""
    own = np.asarray(values, dtype=float)
    return np.where(routed, own / own[routed].mean(), 1.0)


def together(record: Mapping[str, Any]) -> np.ndarray:
    """How often two experts meet, 1 as if drawn at random; NaN on the diagonal and where no two routed ones meet."""
    pairs, routed = np.asarray(record["coactivation"], dtype=float), ~shared(record)
    off = np.outer(routed, routed) & ~np.eye(len(pairs), dtype=bool)
    mean = pairs[off].mean() if off.any() else 0.0
    chosen = _over_mean(record["load"], routed)
    out = np.where(off, pairs / mean if mean > 0 else np.nan, np.where(routed, chosen, chosen[:, None]))
    np.fill_diagonal(out, np.nan)
    return out


def read(study: Study) -> dict[str, list[dict[str, Any]]]:
    """The routing records of the chosen runs that have any."""
    ids = sorted({run for choice in study.choices for run in choice.ids})
    with_routing = [run for run in ids if folder_of(study.roots, run).items("routing").exists()]
    out = {}
    for run in with_routing:
        found = table.items(study.roots, [run], "routing")
        if missing := set(_NEEDED) - set(found.columns):
            where = folder_of(study.roots, run).items("routing")
            raise Corrupted(str(where), sorted(missing), f"{', '.join(_NEEDED)} in each line")
        out[run] = found.to_dict("records")
    return out


def frame(choices: Sequence[Choice], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """A row per run, module and expert, as recorded: nothing sorted or averaged."""
    rows = []
    for choice in choices:
        own = {"setting": choice.setting, "dataset": choice.dataset, "arm": choice.arm, "lr": choice.lr}
        for run, seed in zip(choice.ids, choice.seeds):
            for record in records.get(run, ()):
                layer, kind = place(record["item"])
                at = own | {"seed": seed, "id": run, "module": record["item"], "layer": layer, "kind": kind}
                each = zip(record["load"], relative(record).tolist(), record["mean_gate"])
                rows += [at | {"expert": number, "load": load, "relative": over, "mean_gate": gate}
                         for number, (load, over, gate) in enumerate(each, 1)]  # fmt: skip
    return pd.DataFrame(rows)
