"""The longer tables of run folders: a row per item, a row per recorded number, and what runs cost."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pandas as pd

from ablora.store import lines
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of, metric_name


def items(roots: Roots, ids: Iterable[str], task: str) -> pd.DataFrame:
    """One row per run and item of a task's last evaluation: `id`, `item`, and what the task records of an item."""
    parts = []
    for run in ids:
        folder = folder_of(roots, run)
        path = folder.items(task)
        if not path.exists():
            raise Corrupted(str(path), None, f"the items of task {task}; evaluate the run again")
        found = list(lines.read(path))
        if not all(isinstance(record, dict) and "item" in record for record in found):
            raise Corrupted(str(path), None, "a line per item, each with its item")
        parts.append(pd.DataFrame([{"id": run, **record} for record in found]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"id": [], "item": []}, dtype="str")


def curves(roots: Roots, ids: Iterable[str], metrics: Collection[str] | None = None) -> pd.DataFrame:
    """One row per number of metrics.jsonl: `id`, `kind` (train or eval), `step`, `task`, `split`, `metric`, `value`.

    `metrics` keeps only the named ones: a long study has tens of millions of numbers, a figure needs a few.
    An evaluation's metric has the name that result.json gives it: on another split than test, the split comes first.
    A number that a run recorded as null (it was not finite) is NaN.
    """
    columns = ["id", "kind", "step", "task", "split", "metric", "value"]
    rows = [
        (run, *row) for run in ids for row in _numbers(folder_of(roots, run)) if metrics is None or row[4] in metrics
    ]
    kinds = {"step": "int64", "value": "float64"} | {c: "str" for c in columns if c not in ("step", "value")}
    return pd.DataFrame(rows, columns=pd.Index(columns)).astype(kinds)


def _numbers(folder: RunFolder) -> Iterator[tuple[str, int, str | None, str | None, str, Any]]:
    for number, record in enumerate(lines.read(folder.metrics), 1):
        try:
            kind, step = record["kind"], record["step"]
        except (KeyError, TypeError) as error:
            place = f"{folder.metrics}:{number}"
            raise Corrupted(place, str(record)[:40], "a record with its kind and step") from error
        if kind == "eval":
            for name, value in record.get("metrics", {}).items():
                split = record.get("split", "test")
                yield kind, step, record.get("task"), split, metric_name(split, name), value
        else:
            for name, value in record.items():
                if name not in ("kind", "step") and (value is None or isinstance(value, int | float)):
                    yield kind, step, None, None, name, value


def costs(roots: Roots, ids: Iterable[str]) -> pd.DataFrame:
    """One row per run: seconds and tokens in all, tokens per second, and peak memory (the greatest of any process).

    timing.jsonl counts from the start of each process, so a resumed run's clock falls back: its parts are summed. The
    seconds of a run in a pack are those of the pack.
    """
    rows = []
    for run in ids:
        found = list(lines.read(folder_of(roots, run).timing))
        later = [*found[1:], {"wall_s": 0.0}]
        ends = [record for record, after in zip(found, later) if after["wall_s"] < record["wall_s"]]
        wall_s, tokens = sum(r["wall_s"] for r in ends), sum(r["tokens"] for r in ends)
        names = sorted({name for record in found for name in record if name.startswith("peak")})
        peaks = {name: max(record.get(name, 0.0) for record in found) for name in names}
        rate = tokens / wall_s if wall_s > 0 else None
        rows.append(
            {"id": run, "processes": len(ends), "wall_s": wall_s, "tokens": tokens, "tokens_per_s": rate, **peaks}
        )
    return pd.DataFrame(
        rows, columns=None if rows else pd.Index(["id", "processes", "wall_s", "tokens", "tokens_per_s"])
    )
