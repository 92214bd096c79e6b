"""Run folders to tables: one row per run of a study, and the longer tables that figures need.

runs.parquet, runs.csv   what the runs are and what they reached: nothing in them differs between two equal executions,
                         so they are bit-equal after a kill and a resume
costs.csv                what the runs took: seconds, tokens per second, peak memory
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablora.spec import check
from ablora.store import lines
from ablora.store.atomic import Corrupted, read_json, replace, write_text
from ablora.store.claims import is_held, latest
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora_analysis.records import costs, curves, items

__all__ = ["cells", "collect", "costs", "curves", "items", "metrics_of", "names", "read_rows"]

COLUMNS = {
    "id": "str", "state": "str", "failure_class": "str", "stale": "boolean", "problem": "str", "cells": "Int64",
    "method": "str", "method_class": "str", "init": "str", "scaling": "str", "structure": "str", "update": "str",
    "rank": "Int64", "lr": "float64", "seed": "Int64", "dataset": "str", "model": "str",
    "max_steps": "Int64", "batch_size": "Int64", "max_tokens": "Int64",
    "step": "Int64", "trainable_parameters": "Int64", "adapter_bytes": "Int64",
}  # fmt: skip
"""The columns that every table has; then each metric of result.json under its own name, which holds its unit; then
`label.<axis>`, the swept axes of the run's first cell as the user wrote them."""

EXACT = "ablora_adapter.safetensors"
"""The factors as they were trained; the file beside it holds them again in PEFT's layout. (The name is restated because
`ablora.method.export` imports torch, which a table does not need.)"""

LABEL = "label."
PRUNED = "pruned"
"""Restated from `ablora.study.status`: why a cell is in the manifest whose run a tuner gave up, and its state."""
DERIVED = ("arm", "setting", "fate", "why", "searched")
"""What `cells` and `figures.arms.prepare` add."""


def collect(roots: Roots, study: str, stale: Callable[[RunFolder], bool] = RunFolder.is_stale) -> Path:
    """Write the study's tables; returns the path of runs.parquet. A run with a file that cannot be read is a row with
    its `problem`; when the tables are written, `Corrupted` names the first such file."""
    table, problems = read_rows(roots, study, stale)
    folder = roots.studies / study / "tables"
    path = folder / "runs.parquet"
    replace(path, lambda aside: table.to_parquet(aside, engine="pyarrow", index=False, compression="zstd"))
    write_text(folder / "runs.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "costs.csv", costs(roots, table["id"]).to_csv(index=False, lineterminator="\n"))
    if problems:
        raise problems[0]
    return path


def read_rows(
    roots: Roots, study: str, stale: Callable[[RunFolder], bool] = RunFolder.is_stale
) -> tuple[pd.DataFrame, list[Corrupted]]:
    """One row per distinct run, in the manifest's order, and what could not be read."""
    rows: dict[str, dict[str, Any]] = {}
    problems: list[Corrupted] = []
    for cell in manifest(roots, study):
        if cell["id"] in rows:
            rows[cell["id"]]["cells"] += 1
            continue
        row, problem = _row(folder_of(roots, cell["id"]), stale)
        labels = {LABEL + axis: _text(value) for axis, value in cell.get("labels", {}).items()}
        rows[cell["id"]] = {"id": cell["id"], "method": cell["method"], "cells": 1, **row, "labels": labels}
        problems += [problem] if problem else []
    return _frame(list(rows.values())), problems


def manifest(roots: Roots, study: str) -> list[dict[str, Any]]:
    """The study's cells, duplicates included, in the order in which they were planned."""
    path = roots.studies / study / "manifest.jsonl"
    known = sorted(found.parent.name for found in roots.studies.glob("*/manifest.jsonl"))
    check(path.exists(), "study", study, f"one of {', '.join(known)}" if known else f"no study in {roots.studies} yet")
    found = list(lines.read(path))
    for number, cell in enumerate(found, 1):
        if not isinstance(cell, dict) or not {"id", "method"} <= cell.keys():
            raise Corrupted(f"{path}:{number}", str(cell)[:40], "a cell with its id and method")
    return found


def cells(roots: Roots, study: str, table: pd.DataFrame) -> pd.DataFrame:
    """One row per planned cell: its own method and labels, and the columns of its run. Two cells that are the same run
    (a method without a rank in a grid over ranks) are two rows here and one in the table of runs. `searched` has the
    keys that a search drew beside rate and seed, with spaces between."""
    planned = [
        {"id": cell["id"], "method": cell["method"], "why": cell.get("why", "grid")}
        | {LABEL + axis: _text(value) for axis, value in cell.get("labels", {}).items()}
        for cell in manifest(roots, study)
    ]
    own = pd.DataFrame(planned, dtype="str")
    runs = table.drop(columns=["method", *(c for c in names(table) if c.startswith(LABEL))])
    out = own.merge(runs, on="id", how="left", validate="many_to_one")
    given_up = (out["why"] == PRUNED) & out["state"].isin(["planned", "lost"])
    drawn = [one["key"] for one in search_of(roots, study)["space"] if one["key"] not in ("train.lr", "seed")]
    return out.assign(state=out["state"].mask(given_up, PRUNED), searched=" ".join(dict.fromkeys(drawn)))


def search_of(roots: Roots, study: str) -> dict[str, Any]:
    """What the study's search asked for, restated from `ablora.tune.frozen`: an empty space where it has none."""
    path = roots.studies / study / "tune.json"
    return read_json(path) if path.exists() else {"space": [], "tuner": {"metrics": []}}


def names(table: pd.DataFrame) -> list[str]:
    """The columns' names: ours are all text, while pandas' own types allow anything hashable."""
    return [str(column) for column in table.columns]


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The columns that came from the runs' results."""
    return [c for c in names(table) if c not in COLUMNS and c not in DERIVED and not c.startswith(LABEL)]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    metrics = sorted({name for row in rows for name in row.get("metrics", {})})
    taken = sorted(set(metrics) & COLUMNS.keys())
    check(not taken, "metric", ", ".join(taken), "a name that is not a column of the table of runs")
    axes = list(dict.fromkeys(name for row in rows for name in row["labels"]))
    columns: dict[str, Any] = {}
    for name, kind in COLUMNS.items():
        values = [row.get(name) for row in rows]
        # pandas' types have only the kinds that a call writes out; any name of a kind is legal when it runs.
        columns[name] = pd.array(values, dtype=kind)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for name in metrics:
        columns[name] = pd.array([_number(row.get("metrics", {}).get(name)) for row in rows], dtype="float64")
    for name in axes:
        columns[name] = pd.array([row["labels"].get(name) for row in rows], dtype="str")
    return pd.DataFrame(columns)


def _row(folder: RunFolder, stale: Callable[[RunFolder], bool]) -> tuple[dict[str, Any], Corrupted | None]:
    """What one folder says; what was read before a broken file is kept, and the file is named."""
    row: dict[str, Any] = {"state": "lost"}
    try:
        row["state"] = _state(folder)
        if folder.spec.exists():
            row |= _of_spec(folder.read_tree())
            row["stale"] = _stale(folder, stale)
        if row["state"] == "done":
            result = folder.read_result()
            if not isinstance(result["metrics"], Mapping):
                raise Corrupted(str(folder.result), str(result["metrics"])[:40], "metrics by name")
            row |= {key: result.get(key) for key in ("step", "trainable_parameters", "metrics")}
            adapter = folder.adapter / EXACT
            row["adapter_bytes"] = adapter.stat().st_size if adapter.exists() else None
        elif row["state"] == "failed":
            failure = folder.read_failure()
            if not isinstance(failure, dict) or "class" not in failure:
                raise Corrupted(str(folder.failure), str(failure)[:40], "a failure with its class")
            row |= {"failure_class": failure["class"], "step": failure.get("step")}
    except Corrupted as problem:
        # Relative to the runs: the table must not differ between two places.
        row["problem"] = str(problem).replace(f"{folder.path.parent}/", "")
        return row, problem
    return row, None


def _of_spec(tree: Mapping[str, Any]) -> dict[str, Any]:
    method, train = tree.get("method"), tree.get("train", {})
    axes = {axis: _kind(method.get(axis)) for axis in ("init", "scaling", "structure", "update")} if method else {}
    named = {part: (tree.get(part) or {}).get("name") or _kind(tree.get(part)) for part in ("dataset", "model")}
    own = {key: train.get(key) for key in ("lr", "max_steps", "batch_size", "max_tokens")}
    return {"method_class": _kind(method), **axes, **named, **own, "rank": tree.get("rank"), "seed": tree.get("seed")}


def _kind(tree: Any) -> str | None:
    """The class that a part of a specification names."""
    return tree["_target_"].rpartition(".")[2] if isinstance(tree, Mapping) and "_target_" in tree else None


def _stale(folder: RunFolder, stale: Callable[[RunFolder], bool]) -> bool | None:
    """None where it cannot be told: a class that this installation lacks, a data file that is not here."""
    try:
        return stale(folder)
    except Corrupted:
        raise
    except (ValueError, OSError):
        return None


def _state(folder: RunFolder) -> str:
    held = is_held(folder)  # asked before the disk: a run that ends in between is seen as done
    if folder.result.exists():
        return "done"
    if held:
        return "running"
    if folder.failure.exists():
        return "failed"
    released = (folder.path / f"claim.{latest(folder)}.released").exists()
    return "lost" if latest(folder) >= 0 and not released else "planned"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else lines.dumps(value)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def studies(roots: Roots) -> list[str]:
    """Every study that has a plan."""
    return sorted(path.parent.name for path in roots.studies.glob("*/manifest.jsonl"))
