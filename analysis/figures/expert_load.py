"""Where mixtures send their tokens: each expert's load by layer and kind of module, and which experts meet.

load          share of tokens that an expert got, over k/E, the share when balanced
co-activation share of tokens that two experts both got, over k (k - 1) / (E (E - 1)), that of k drawn at random

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


class Load(NamedTuple):
    """One mixture at its chosen rate; means over its runs."""

    setting: str
    dataset: str
    arm: str
    experts: int
    top_k: int
    named: bool
    """Whether experts are the same in every module and run; otherwise they stand in order of their load."""
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    load: np.ndarray
    """(layers, kinds, experts), 1 when balanced; NaN where a layer lacks a kind."""
    together: np.ndarray
    """(experts, experts), mean over modules, 1 as if drawn at random; NaN on the diagonal and where k is 1."""
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
    experts = len(runs[0][0]["load"])
    k = round(sum(runs[0][0]["load"]))
    sums, counts = np.zeros((len(layers), len(kinds), experts)), np.zeros((len(layers), len(kinds), 1))
    met, least = np.zeros((experts, experts)), np.inf
    for record in (record for run in runs for record in run):
        own, pairs = relative(record, k), np.asarray(record["coactivation"])
        order = np.arange(experts) if named else np.argsort(-own, kind="stable")
        layer, kind = place(record["item"])
        at = layers.index(layer), kinds.index(kind)
        sums[at] += own[order]
        counts[at] += 1
        met += pairs[np.ix_(order, order)]
        least = min(least, float(own.min()))
    mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    together = _together(met / sum(map(len, runs)), experts, k)
    return Load(choice.setting, choice.dataset, choice.arm, experts, k, named, tuple(layers), tuple(kinds), mean,
                together, least, tuple(ids))  # fmt: skip


def relative(record: Mapping[str, Any], k: int) -> np.ndarray:
    """Each expert's load, 1 when balanced; where all get every token, its mean gate weight instead."""
    load = np.asarray(record["load"], dtype=float)
    return np.asarray(record["mean_gate"], dtype=float) * load.size if k == load.size else load * load.size / k


def _together(share: np.ndarray, experts: int, k: int) -> np.ndarray:
    if k < 2:
        return np.full_like(share, np.nan)
    out = share * experts * (experts - 1) / (k * (k - 1))
    np.fill_diagonal(out, np.nan)
    return out


def read(study: Study) -> dict[str, list[dict[str, Any]]]:
    """The routing records of the chosen runs that have any."""
    ids = sorted({run for choice in study.choices for run in choice.ids})
    with_routing = [run for run in ids if folder_of(study.roots, run).items("routing").exists()]
    out = {}
    for run in with_routing:
        found = table.items(study.roots, [run], "routing")
        if missing := {"load", "mean_gate", "coactivation"} - set(found.columns):
            where = folder_of(study.roots, run).items("routing")
            raise Corrupted(str(where), sorted(missing), "load, mean_gate and coactivation in each line")
        out[run] = found.to_dict("records")
    return out


def frame(
    loads: Sequence[Load], choices: Sequence[Choice], records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> pd.DataFrame:
    """A row per run, module and expert, as recorded: nothing sorted or averaged."""
    tops = {(load.setting, load.dataset, load.arm): load.top_k for load in loads}
    rows = []
    for choice in choices:
        own = {"setting": choice.setting, "dataset": choice.dataset, "arm": choice.arm, "lr": choice.lr}
        for run, seed in zip(choice.ids, choice.seeds):
            for record in records.get(run, ()):
                layer, kind = place(record["item"])
                at = own | {"seed": seed, "id": run, "module": record["item"], "layer": layer, "kind": kind}
                each = zip(record["load"], relative(record, tops[choice[:3]]).tolist(), record["mean_gate"])
                rows += [at | {"expert": number, "load": load, "relative": over, "mean_gate": gate}
                         for number, (load, over, gate) in enumerate(each, 1)]  # fmt: skip
    return pd.DataFrame(rows)
