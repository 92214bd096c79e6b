"""What the drawer of a run shows: its specification, where it ran, its metrics, why it failed, what it generated."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from ablora.store import lines
from ablora.store.atomic import Corrupted
from ablora.store.run_folder import RunFolder, folder_of
from ablora.tree import build
from ablora_analysis.report.evidence import Evidence, state_of
from ablora_analysis.table import LABEL, metrics_of

SAMPLE_CHARACTERS = 2_000_000
"""Of all runs' generated texts together; what is beyond is counted in the drawer and stands in the run folders."""
TEXT_CHARACTERS = 2000
TRACE_CHARACTERS = 20_000
_OF_A_MOMENT = {"time_s", "slurm_job"}
"""Fields of env.json that are no part of a page that repeats."""


def details(evidence: Evidence) -> dict[str, Any]:
    """For the page's script: `base` (the most common value of each field of a specification), `varying`, `places`
    (distinct environments), `prompts`, and `runs` by id."""
    specs = {run: _flat(_tree(folder_of(evidence.roots, run))) for run in evidence.runs.id}
    base, varying = common(specs.values())
    places: list[dict[str, Any]] = []
    samples = _samples(evidence)
    runs = {}
    for run, row in zip(evidence.runs.id, (row for _, row in evidence.runs.iterrows())):
        runs[run] = {
            **_labels(row), "failure": failure(folder_of(evidence.roots, run)),
            "metrics": {name: float(f"{row[name]:.6g}") for name in metrics_of(evidence.runs)
                        if name in evidence.prepared and not pd.isna(row[name])},
            "costs": _costs(row), "spec": difference(base, specs[run]) if specs[run] else None,
            "starts": [_place(places, start) for start in evidence.starts.get(run, [])],
            "samples": samples.get(run),
        }  # fmt: skip
    return {"base": base, "varying": varying, "places": places, "prompts": _prompts(evidence, samples), "runs": runs}


def _tree(folder: RunFolder) -> Mapping[str, Any]:
    try:
        return folder.read_tree() if folder.spec.exists() else {}
    except Corrupted:  # named by the table's problem already
        return {}


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """`{"train.lr": 0.001, ...}`: mappings unfolded, lists kept."""
    if not isinstance(tree, Mapping) or (path and not tree):
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{path}.{key}" if path else str(key))
    return out


def common(specs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The most common value of each field (where two are equally common, the first), and the fields that vary."""
    found = [spec for spec in specs if spec]
    base: dict[str, Any] = {}
    varying = []
    for key in dict.fromkeys(key for spec in found for key in spec):
        counts = Counter(_word(spec[key]) for spec in found if key in spec)
        if len(counts) > 1 or sum(counts.values()) < len(found):
            varying.append(key)
        if 2 * sum(counts.values()) > len(found):
            most = max(counts, key=lambda word: counts[word])  # the first of equals: dictionaries keep their order
            base[key] = next(spec[key] for spec in found if key in spec and _word(spec[key]) == most)
    return base, sorted(varying)


def _word(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def difference(base: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What turns the base into a specification: `set`, the fields that differ, and `without`, those it lacks."""
    changed = {key: value for key, value in spec.items() if key not in base or _word(base[key]) != _word(value)}
    return {"set": changed, "without": sorted(set(base) - set(spec))}


def _labels(row: pd.Series) -> dict[str, Any]:
    out = {
        key: _plain(row[key]) for key in ("arm", "method", "dataset", "setting", "lr", "seed", "step", "why", "problem")
    }
    swept = {name.removeprefix(LABEL): row[name] for name in row.index if str(name).startswith(LABEL)}
    return {**out, "state": state_of(row), "labels": {k: str(v) for k, v in swept.items() if not pd.isna(v)}}


def _costs(row: pd.Series) -> dict[str, float]:
    wanted = [
        name for name in ("trainable_parameters", "adapter_bytes", "wall_s", "tokens", "tokens_per_s") if name in row
    ]
    wanted += [str(name) for name in row.index if str(name).startswith("peak")]
    return {name: float(f"{float(row[name]):.6g}") for name in wanted if not pd.isna(row[name])}


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def failure(folder: RunFolder) -> dict[str, Any] | None:
    """Class, message and the end of the traceback, where the run failed."""
    if folder.result.exists() or not folder.failure.exists():
        return None
    try:
        record = folder.read_failure()
    except Corrupted as problem:
        return {"class": "unreadable", "message": str(problem), "traceback": "", "step": None}
    record = record if isinstance(record, dict) else {}
    trace = str(record.get("traceback", ""))
    cut = len(trace) - TRACE_CHARACTERS
    trace = f"[{cut} characters before this are in failure.json]\n{trace[-TRACE_CHARACTERS:]}" if cut > 0 else trace
    return {"class": str(record.get("class", "bug")), "message": str(record.get("message", "")), "traceback": trace,
            "step": record.get("step")}  # fmt: skip


def _place(places: list[dict[str, Any]], start: Mapping[str, Any]) -> int:
    """The number of an environment among the distinct ones."""
    own = _flat({key: value for key, value in start.items() if key not in _OF_A_MOMENT})
    if own not in places:
        places.append(own)
    return places.index(own)


def _samples(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """By run: the first items of evals/generation.jsonl, equally many of each run, within SAMPLE_CHARACTERS."""
    found = {run: records for run in evidence.runs.id if (records := _generated(evidence, run))}
    most = max(map(len, found.values()), default=0)
    while most > 4 and sum(_length(r) for records in found.values() for r in records[:most]) > SAMPLE_CHARACTERS:
        most = most * 3 // 4
    return {run: {"of": len(records), "items": [_sample(record) for record in records[:most]]}
            for run, records in found.items()}  # fmt: skip


def _generated(evidence: Evidence, run: str) -> list[dict[str, Any]]:
    try:
        records = list(lines.read(folder_of(evidence.roots, run).items("generation")))
    except Corrupted as problem:
        evidence.problems.append(problem)
        return []
    return [record for record in records if isinstance(record, dict) and "item" in record]


def _length(record: Mapping[str, Any]) -> int:
    return min(TEXT_CHARACTERS, len(str(record.get("text", "")))) + 80


def _sample(record: Mapping[str, Any]) -> list[Any]:
    """item, prediction, target, right or wrong, text."""
    item, prediction, target = (_short(str(record.get(key, ""))) for key in ("item", "prediction", "target"))
    return [item, prediction, target, bool(record.get("correct")), _short(str(record.get("text", "")))]


def _short(text: str) -> str:
    cut = len(text) - TEXT_CHARACTERS
    return f"{text[:TEXT_CHARACTERS]} [… {cut} more characters in evals/generation.jsonl]" if cut > 0 else text


def _prompts(evidence: Evidence, samples: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By data set and item: the prompt, where the data set is here and is the one that its runs saw."""
    trusted = evidence.runs[evidence.runs["stale"].eq(False).fillna(False)]
    out: dict[str, dict[str, str]] = {}
    for dataset, part in trusted.groupby("dataset"):
        items = {str(item[0]) for run in part.id for item in samples.get(run, {}).get("items", [])}
        trees = {_word(_tree(folder_of(evidence.roots, run)).get("dataset")) for run in part.id}
        if items and len(trees) == 1:
            out[str(dataset)] = {
                item: _short(text) for item, text in _of_dataset(json.loads(trees.pop())) if item in items
            }
    return out


def _of_dataset(tree: Any) -> Iterator[tuple[str, str]]:
    try:
        splits = build(tree).load()
    except (ValueError, OSError, ImportError, AttributeError):  # not here: the page shows items without their prompts
        return
    for split in ("train", "validation", "test"):
        for example in getattr(splits, split, ()):
            yield example.item, example.prompt
