"""The study folder: which runs belong to the question, in which packs, and under which labels.

manifest.jsonl   one line per cell: {"id", "labels", "method", "pack", "why"}, and "duplicate_of" where an earlier line
                 holds the same run
plan.json        {"schema", "name", "overrides", "cells", "runs", "duplicates", "packs", "created_s", "execution"}
confirm.json     the second stage of a study that tunes first (study/confirm.py)
tune.json        the search of a study that has one (tune/frozen.py), with its trials' folders in search/trials/
optuna.journal   what Optuna keeps of the trials, unless a database has it
jobs/            what submitit writes: payloads (lists of run ids) and logs
"""

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from ablora.spec import BadInput, check
from ablora.store import atomic, lines
from ablora.store.roots import Roots

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One cell: the run it is, and what the user called it."""

    id: str
    labels: Mapping[str, Any]
    method: str
    pack: int
    why: str = "grid"
    duplicate_of: str | None = None

    def to_record(self) -> dict[str, Any]:
        record = {f.name: getattr(self, f.name) for f in fields(self)} | {"labels": dict(self.labels)}
        if self.duplicate_of is None:
            del record["duplicate_of"]
        return record


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Paths of one study; making one touches nothing on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def confirm(self) -> Path:
        return self.path / "confirm.json"

    @property
    def search(self) -> Path:
        return self.path / "tune.json"

    @property
    def fair(self) -> Path:
        return self.path / "fair.json"

    @property
    def journal(self) -> Path:
        return self.path / "optuna.journal"

    @property
    def trials(self) -> Path:
        """A folder for each trial of a search, with claims and a result as runs have them."""
        return self.path / "search" / "trials"

    def rows(self) -> list[Row]:
        """The manifest's cells in order; none if there is no such study yet."""
        out = []
        for number, record in enumerate(lines.read(self.manifest), 1):
            try:
                out.append(Row(**record))
            except TypeError as error:
                raise atomic.Corrupted(f"{self.manifest}:{number}", sorted(record), f"a cell ({error})") from error
        return out

    def write(self, rows: Sequence[Row], overrides: Sequence[str], execution: Mapping[str, Any]) -> None:
        """Put manifest and plan in place, the manifest last: its presence means that the study exists."""
        self.path.mkdir(parents=True, exist_ok=True)
        duplicates = sum(row.duplicate_of is not None for row in rows)
        counts = {"cells": len(rows), "runs": len(rows) - duplicates, "duplicates": duplicates}
        packs = len({row.pack for row in rows})
        plan = {"schema": SCHEMA, "name": self.name, "overrides": list(overrides), **counts, "packs": packs}
        atomic.write_json(self.plan, {**plan, "created_s": self._created(), "execution": dict(execution)})
        lines.write(self.manifest, (row.to_record() for row in rows))

    def _created(self) -> float:
        return self.read_plan()["created_s"] if self.plan.exists() else time.time()

    def read_plan(self) -> dict[str, Any]:
        plan = atomic.read_json(self.plan)
        if not isinstance(plan, dict) or "execution" not in plan or "created_s" not in plan:
            raise atomic.Corrupted(str(self.plan), type(plan).__name__, "a study's plan; move it away and plan again")
        return plan

    def lock(self) -> FileLock:
        """Held while the manifest is read, merged and written; the file stays, as locks by name need it to."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / ".lock")


def study_folder(roots: Roots, name: str) -> StudyFolder:
    return StudyFolder(roots.studies / name)


def existing_study(roots: Roots, name: str) -> StudyFolder:
    """The folder of a study that has a manifest, or an error that lists those there are."""
    folder = study_folder(roots, name)
    check("/" not in name and folder.manifest.exists(), "STUDY", name, _legal_names(roots, name))
    return folder


def require_any(roots: Roots) -> list[str]:
    """Every study, by name; an error that says how to get one if there is none."""
    found = names(roots)
    check(bool(found), "STUDY", "", _legal_names(roots, ""))
    return found


def _legal_names(roots: Roots, name: str) -> str:
    if found := names(roots):
        close = difflib.get_close_matches(name, found, n=1)
        return f"{f'did you mean {close[0]}? ' if close else ''}a study in {roots.studies}: {', '.join(found)}"
    return (f"a study in {roots.studies}: there is none yet; `ablora run -m ... study=NAME` makes one. Studies made in "
            "another folder: go there, or export ABLORA_RUNS=THAT/FOLDER/runs")  # fmt: skip


def names(roots: Roots) -> list[str]:
    """Every study, by name."""
    return sorted(path.parent.name for path in roots.studies.glob("*/manifest.jsonl"))


Pack = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Runs, by id, as packs."""


def alone(runs: Sequence[str]) -> list[list[str]]:
    """Every run by itself."""
    return [[run] for run in runs]


def merged(old: Sequence[Row], new: Sequence[Row], study: str, pack: Pack = alone) -> list[Row]:
    """The study grown by new cells: known cells keep their places and packs, new ones follow; none may leave.

    Labels are the new command's, which may have swept more axes. New runs are packed among themselves, and their packs
    numbered on from the highest.
    """
    known, asked = {row.id: row.pack for row in old}, {row.id for row in new}
    if gone := [row for row in old if row.id not in asked]:
        first = " ".join(f"{key}={value}" for key, value in gone[0].labels.items())
        lost = f"{len({row.id for row in gone})} runs that the command does not ask for ({gone[0].id}: {first})"
        raise BadInput("study", study, f"another name: this study has {lost}; a study may grow, not lose cells, and "
                       "an id also changes with its data set's content or a revision of the code")  # fmt: skip
    packs = dict(known)
    first = 1 + max(packs.values(), default=-1)
    fresh = list(dict.fromkeys(row.id for row in new if row.id not in known))
    for number, together in enumerate(pack(fresh), first):
        packs |= dict.fromkeys(together, number)
    places = {run: place for place, run in enumerate(dict.fromkeys([row.id for row in (*old, *new)]))}
    ordered = sorted(new, key=lambda row: places[row.id])
    return [Row(row.id, row.labels, row.method, packs[row.id], row.why, row.duplicate_of) for row in ordered]
