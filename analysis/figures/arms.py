"""What a study compares, and at which learning rate: cells to arms, settings, and each arm's chosen rate.

arm      what is compared: a method, and the axes that were swept beside it (`lora, init=svd_minor`)
setting  what is held equal in a comparison: model, data set options, and the rank where methods are compared
why      the cell's part in the study's protocol: "tune" chooses a rate, "confirm" is reported, "grid" does both;
         "pruned" was to choose one and was given up on the way, so its rate is a tried one and not the best
searched what a search drew beside the rate is no axis of its own: at each rate an arm is the best of its trials there
fate     used, diverged (data, shown as such), or why a run is left out
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ablora.store.atomic import Corrupted
from ablora_analysis.table import LABEL, PRUNED, metrics_of, names

USED, DIVERGED = "used", "diverged"
BEATEN = "not the best trial at their rate"
CONFIRM = "confirm"
"""Restated from `ablora.study.confirm`, which imports torch by way of the data sets."""
_OWN_COLUMN = {"method", "seed", "train.lr", "dataset", "model", "rank"}
_SELECTION = ("validation_answer_loss_nats", "answer_loss_nats", "train_loss_nats")
_KEY = ["setting", "dataset", "arm"]


class Choice(NamedTuple):
    """An arm at the learning rate at which it is compared."""

    setting: str
    dataset: str
    arm: str
    method: str
    lr: float
    lrs: tuple[float, ...]
    metric: str
    edge: bool
    """The best rate is the least or greatest that was tried: a better one may lie beyond."""
    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    """The used runs at this rate, in the order of `seeds`."""
    diverged: tuple[str, ...]
    """The runs at this rate that diverged."""
    diverged_share: str
    """Over all rates, such as "1/12": how many of the arm's finished runs diverged."""


def prepare(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with their `arm`, `setting` and `fate`; a cell written twice is kept once."""
    swept = [c.removeprefix(LABEL) for c in names(cells) if c.startswith(LABEL)]
    # A method without a rank may come without the label: that alone makes no second rank.
    varying = [axis for axis in swept if cells[LABEL + axis].nunique(dropna=axis == "rank") > 1]
    several = cells["method"].nunique() > 1
    searched = _searched(cells)
    other = [axis for axis in varying if axis not in _OWN_COLUMN | searched]
    equal = ("dataset.", "model.", "budget.") if several else ("dataset.", "model.")  # methods: at an equal budget
    held = [axis for axis in other if axis.startswith(equal)]
    compared = [axis for axis in other if axis not in held]
    if "rank" in varying and "rank" not in searched:
        (held if several else compared).append("rank")  # methods are compared at equal rank
    if cells["model"].nunique() > 1:
        held.insert(0, "model")
    rows = cells.to_dict("records")
    out = cells.assign(
        arm=[", ".join([row["method"], *_named(row, compared)]) for row in rows],
        setting=[", ".join(_named(row, held)) for row in rows],
        fate=[_fate(row) for row in rows],
        dataset=cells["dataset"].fillna(""),
    ).drop_duplicates([*_KEY, "id"], ignore_index=True)
    out = _best_of_searched(out) if searched else out
    runs = out[out["fate"].isin([USED, DIVERGED])]
    if (twice := runs.duplicated([*_KEY, "lr", "seed"])).any():
        row = runs[twice].iloc[0]
        raise Corrupted("manifest.jsonl", row["id"], f"one run per learning rate and seed of {row['arm']}; "
                        "the manifest's labels must hold every swept axis")  # fmt: skip
    return out


def _searched(cells: pd.DataFrame) -> frozenset[str]:
    return frozenset(" ".join(cells["searched"].unique()).split()) if "searched" in cells.columns else frozenset()


def _best_of_searched(prepared: pd.DataFrame) -> pd.DataFrame:
    """Of the trials of one arm at one rate and seed the best; a rate that was drawn from a range has one anyway."""
    metric = selection_metric(prepared)
    order = prepared.sort_values(metric, kind="stable", na_position="last") if metric else prepared
    order = order[order["fate"].isin([USED, DIVERGED])].sort_values("fate", key=lambda f: f != USED, kind="stable")
    beaten = order.index[order.duplicated([*_KEY, "lr", "seed"])]
    return prepared.assign(fate=prepared["fate"].where(~prepared.index.isin(beaten), BEATEN))


def every_trial(prepared: pd.DataFrame) -> pd.DataFrame:
    """The same rows with those used that were not the best at their rate: for what is about the search itself."""
    return prepared.assign(fate=[_fate(row) for row in prepared.to_dict("records")])


def _named(row: Mapping[Any, Any], axes: Iterable[str]) -> list[str]:
    pairs = [(axis, row["model"] if axis == "model" else row.get(LABEL + axis)) for axis in axes]
    return [f"{axis.replace('/', '.').rpartition('.')[2]}={value}" for axis, value in pairs if not pd.isna(value)]


def _fate(row: Mapping[Any, Any]) -> str:
    if not pd.isna(row["problem"]):
        return "unreadable"
    if row["state"] in ("done", "failed") and not pd.isna(row["stale"]) and row["stale"]:
        return "stale"
    if row["state"] == "failed":
        return DIVERGED if row["failure_class"] == "diverged" else f"failed ({row['failure_class']})"
    return USED if row["state"] == "done" else str(row["state"])


def left_out(prepared: pd.DataFrame) -> dict[str, list[str]]:
    """Why runs are in no figure, and which."""
    out = prepared[~prepared["fate"].isin([USED, DIVERGED])]
    return {str(fate): sorted(set(part["id"])) for fate, part in out.groupby("fate")}


def selection_metric(prepared: pd.DataFrame) -> str | None:
    """The metric that chooses a learning rate: a validation split's where there is one."""
    found = metrics_of(prepared)
    return next((name for name in _SELECTION if name in found and prepared[name].notna().any()), None)


def choose(prepared: pd.DataFrame) -> list[Choice]:
    """Each arm's learning rate, and its runs there.

    Where the study confirms with fresh seeds, the rate is the one that was confirmed, and only those seeds are used.
    Otherwise: among the rates with the most finished seeds, the least mean of the selection metric over seeds. A rate
    at which a seed diverged has fewer finished seeds, so a rate where none did comes before it.
    """
    metric = selection_metric(prepared)
    confirms = confirmed(prepared)
    runs = prepared[prepared["fate"].isin([USED, DIVERGED])]
    given_up = prepared[prepared["fate"] == PRUNED].groupby(_KEY)["lr"].apply(set).to_dict()
    out = []
    for key, part in runs.groupby(_KEY, sort=False):
        fresh = part[part["why"] == CONFIRM]
        tuned = part[part["why"] != CONFIRM] if len(fresh) < len(part) else part
        rates = {float(str(lr)): rows for lr, rows in tuned.groupby("lr", sort=True)}
        lr = float(fresh["lr"].iloc[0]) if len(fresh) else min(rates, key=lambda rate: _merit(rates[rate], metric))
        own = fresh if confirms else rates[lr]
        out.append(_choice(part, own, tuple(sorted({*rates, lr, *given_up.get(key, ())})), lr, metric))
    return out


def confirmed(prepared: pd.DataFrame) -> bool:
    """Whether the study reports fresh seeds; until the first of them is planned, its figures show what tuned."""
    return bool((prepared["why"] == CONFIRM).any())


def _merit(rows: pd.DataFrame, metric: str | None) -> tuple[int, float]:
    finished = _finished(rows, metric)
    return -len(finished), float(finished[metric].mean()) if metric and len(finished) else math.inf


def _finished(rows: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Used runs whose selection metric is a number; a run that is done without one is counted as diverged."""
    used = rows[rows["fate"] == USED]
    return used[used[metric].notna()] if metric else used


def _choice(part: pd.DataFrame, rows: pd.DataFrame, lrs: tuple[float, ...], lr: float, metric: str | None) -> Choice:
    used = _finished(rows, metric).sort_values("seed")
    diverged = tuple(sorted(set(rows["id"]) - set(used["id"])))
    num_diverged = len(part) - len(_finished(part, metric))
    first = part.iloc[0]
    return Choice(
        first["setting"], first["dataset"], first["arm"], first["method"], lr, lrs, metric or "",
        len(lrs) > 1 and lr in (lrs[0], lrs[-1]), tuple(int(s) for s in used["seed"]), tuple(used["id"]), diverged,
        f"{num_diverged}/{len(part)}",
    )  # fmt: skip


def notes(prepared: pd.DataFrame, choices: Sequence[Choice]) -> list[str]:
    """What a reader must know of how runs were chosen; short, for a figure's foot."""
    out = []
    if confirmed(prepared):
        metric = choices[0].metric
        out.append(f"Learning rate of each method: least {metric} of a tuning seed; shown are fresh seeds alone.")
    elif any(len(choice.lrs) > 1 for choice in choices):
        metric = choices[0].metric
        held_out = metric.startswith("validation_")
        where = "on a validation split" if held_out else "selected on the reported items"
        out.append(f"Learning rate of each method: least mean {metric}, {where}, same seeds.")
    else:
        out.append("One learning rate per method, not tuned.")
    if searched := sorted(_searched(prepared)):
        out.append(f"A search: each trial has its own {', '.join(key.rpartition('.')[2] for key in searched)} as well.")
    if reasons := left_out(prepared):
        out.append("Left out: " + ", ".join(f"{len(ids)} {fate}" for fate, ids in reasons.items()) + ".")
    if PRUNED in reasons:
        out.append("A pruned run was given up on the way: its rate counts as tried.")
    if missing := _without_runs(prepared, choices):
        what = "Not confirmed" if confirmed(prepared) else "Without a finished run"
        out.append(f"{what}: {', '.join(missing)}.")
    unchecked = prepared[(prepared["fate"] == USED) & prepared["stale"].isna()]["id"].nunique()
    if unchecked:
        out.append(f"{unchecked} runs could not be checked against today's code.")
    return out


def _without_runs(prepared: pd.DataFrame, choices: Sequence[Choice]) -> list[str]:
    """The arms that a reader would look for in vain, and how many of their runs diverged."""
    shown = {choice[:3] for choice in choices if choice.ids}
    shares = {choice[:3]: f" ({choice.diverged_share} diverged)" for choice in choices}
    planned = dict.fromkeys(zip(prepared["setting"], prepared["dataset"], prepared["arm"]))
    several = len({key[:2] for key in planned}) > 1
    return [
        key[2] + (f" on {panel_title(key[0], key[1])}" if several else "") + shares.get(key, "")
        for key in planned
        if key not in shown
    ]


def panels(choices: Sequence[Choice]) -> list[tuple[str, str]]:
    """The distinct (setting, dataset) pairs, in the order of the plan."""
    return list(dict.fromkeys((choice.setting, choice.dataset) for choice in choices))


def panel_title(setting: str, dataset: str) -> str:
    return ", ".join(part for part in (dataset, setting) if part)
