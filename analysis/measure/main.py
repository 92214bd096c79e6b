"""Measures of a study's adapters into studies/<name>/measures/, and of any adapters on their own."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from ablora.method.peft_config import CONFIG
from ablora.spec import BadInput, check
from ablora.spectra.library import Library
from ablora.store.atomic import read_json, replace, write_json
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms
from ablora_analysis.figures.arms import Choice
from ablora_analysis.measure.adapters import Adapter, NotMeasured
from ablora_analysis.measure.base_weights import base_folder
from ablora_analysis.measure.frames import NAMES, Pair, measure
from ablora_analysis.measure.from_peft import open_peft
from ablora_analysis.measure.from_run import open_run

REVISION = 2
"""Raised when a measure gives other numbers, or a table other columns: files of an older one are made again."""
RECORD = "measures.json"


def measure_study(roots: Roots, name: str, stale: Callable[[RunFolder], bool] = RunFolder.is_stale) -> Path:
    """Write the tables of the runs that a study compares (each arm at its chosen rate); returns their folder.

    Nothing is computed where the files are those of equal adapters, comparison and REVISION. A run whose adapter
    cannot be measured is left out and named in measures.json, with its reason; when the tables are written, its error
    is raised, unless its method has nothing to measure, which is said and no error.
    """
    rows, problems = table.read_rows(roots, name, stale)
    choices = arms.choose(arms.prepare(table.cells(roots, name, rows)))
    found, bad = _open_all(roots, choices)
    if not found:
        raise next(iter((*problems, *bad.values())), BadInput("study", name, "a study with at least one finished run"))
    folder = roots.studies / name / "measures"
    record = _record(found, bad, choices)
    if not _is_current(folder, record):
        frames = measure(found, compared(choices, {adapter.id for adapter in found}), Library(roots.cache))
        write(folder, frames, record)
    for run, error in bad.items():
        if isinstance(error, NotMeasured):
            print(f"ablora: run {run} is not measured: {error.value} is no {error.legal}", file=sys.stderr)
    faults = (*problems, *(error for error in bad.values() if not isinstance(error, NotMeasured)))
    if faults:
        raise faults[0]
    return folder


def _open_all(roots: Roots, choices: Iterable[Choice]) -> tuple[list[Adapter], dict[str, BadInput]]:
    found, bad = [], {}
    for run in dict.fromkeys(run for choice in choices for run in choice.ids):
        try:
            found.append(open_run(folder_of(roots, run)))
        except BadInput as error:
            bad[run] = error
    return found, bad


def compared(choices: Sequence[Choice], ids: set[str]) -> list[Pair]:
    """The pairs of runs between which phi is taken, in the order of the plan: all of one setting and data set, and the
    same arm under two settings (rank 4 against rank 8)."""
    at = [(choice, run) for choice in choices for run in choice.ids if run in ids]
    found = {}
    for (a, run_a), (b, run_b) in combinations(at, 2):
        comparable = a.dataset == b.dataset and (a.setting == b.setting or a.arm == b.arm)
        if comparable and run_a != run_b and Pair(run_b, run_a) not in found:
            found[Pair(run_a, run_b)] = None
    return list(found)


def _record(found: Sequence[Adapter], bad: Mapping[str, BadInput], choices: Sequence[Choice]) -> dict[str, Any]:
    arms_of: dict[str, list[list[str]]] = {}
    for choice in choices:
        for run in choice.ids:
            arms_of.setdefault(run, []).append([choice.setting, choice.dataset, choice.arm])
    runs = {adapter.id: {"content": adapter.content, "arms": arms_of[adapter.id]} for adapter in found}
    left_out = {run: str(error) for run, error in bad.items()}
    return {"schema": 1, "revision": REVISION, "runs": runs, "left_out": left_out}


def _is_current(folder: Path, record: Mapping[str, Any]) -> bool:
    if not all((folder / f"{name}.parquet").exists() for name in NAMES) or not (folder / RECORD).exists():
        return False
    return read_json(folder / RECORD) == record


def write(folder: Path, frames: Mapping[str, pd.DataFrame], record: Mapping[str, Any]) -> None:
    """The tables, then the record that vouches for them; an older record goes first."""
    (folder / RECORD).unlink(missing_ok=True)
    for name, frame in frames.items():
        replace(folder / f"{name}.parquet", lambda aside, f=frame: _write_parquet(f, aside))
    write_json(folder / RECORD, record)


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, engine="pyarrow", index=False, compression="zstd")


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a folder that `write` filled, by name."""
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in NAMES}


def measure_adapters(
    paths: Sequence[str | Path], base: str | Path | None = None, roots: Roots | None = None
) -> dict[str, pd.DataFrame]:
    """The tables of any adapters: run folders, ids of runs, folders that PEFT saved; phi between all of one base.

    `base` is a folder or an embedded base's name; without it a run's own base is used, and for PEFT the one that its
    configuration names, where that is a local folder.
    """
    roots = roots or Roots.from_environment()
    folder = None if base is None else base_folder(base)
    found = [open_adapter(path, folder, roots) for path in paths]
    for a, b in combinations(found, 2):
        check(a.id != b.id, "adapter", a.id, "given once")
    wanted = [Pair(a.id, b.id) for a, b in combinations(found, 2) if a.base.folder == b.base.folder]
    return measure(found, wanted, Library(roots.cache))


def open_adapter(path: str | Path, base: Path | None, roots: Roots) -> Adapter:
    """A run (its folder, its `adapter` folder or its id), or a folder that PEFT saved."""
    own = Path(path).expanduser()
    for place in (own, own.parent if own.name == "adapter" else own, roots.runs / path):
        if (place / "spec.json").exists():
            return open_run(RunFolder(place.resolve()), base)
    if (own / CONFIG).exists():
        return open_peft(own, base, Library(roots.cache))
    raise BadInput("adapter", str(path), f"a study, a run's folder or id, or a folder with PEFT's {CONFIG}")
