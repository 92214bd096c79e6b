"""`ablora clean`: free what no later command needs, and nothing else.

Freed are checkpoint/ (and with `snapshots` snapshots/) of runs that are done, that diverged (a retry from the
checkpoint repeats the same steps bit for bit, and diverges again), and with `failed` of runs that failed otherwise (a
retry then begins at step 0). Never touched: results, adapters, records; a run that is planned, running, or lost, which
goes on from its checkpoint; a run that another study's manifest names; what belongs to another user; a link.
"""

import os
import pwd
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ablora.store.atomic import Corrupted
from ablora.store.claims import release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import StudyFolder, existing_study, names
from ablora.study.status import Standing, failure_class_of, standing

DOOMED = ".cleaned-"
"""A folder is renamed before it is emptied: killed in between, it is no half checkpoint, and the next clean ends it."""


@dataclass(frozen=True, slots=True)
class Item:
    """A folder that holds space, and why it is kept ("": it is not)."""

    run: RunFolder
    path: Path
    files: int
    bytes: int
    kept: str


def clean(roots: Roots, study: str, dry_run: bool, snapshots: bool = False, failed: bool = False) -> Iterator[str]:
    """Free what the study's runs no longer need (with `dry_run` only say what that is); lines of text.

    Every other study's manifest is read first: one that cannot be read raises `Corrupted`, and nothing is freed.
    """
    folder = existing_study(roots, study)
    others = _others(roots, folder)
    freed: list[Item] = []
    kept: list[Item] = []
    for run in dict.fromkeys(_run_of(roots, folder, row.id) for row in folder.rows()):
        for path in _spacious(run, snapshots):
            item = _looked_at(run, path, others.get(run.id, ""), failed)
            if not item.kept and not dry_run:
                item = _free(item, failed)
            (kept if item.kept else freed).append(item)
    yield from (_line("would free" if dry_run else "freed", item) for item in freed)
    yield from (f"{_line('kept', item)}: {item.kept}" for item in kept)
    total = f"{sum(item.files for item in freed)} files, {size(sum(item.bytes for item in freed))}"
    runs = len({item.run.id for item in freed})
    yield f"{study}: {'would free' if dry_run else 'freed'} {total} of {runs} runs; kept folders: {len(kept)}"


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def _run_of(roots: Roots, study: StudyFolder, run: str) -> RunFolder:
    if not re.fullmatch(r"[0-9a-f]{12}", run):  # an id is a path below the runs; it may not lead out of them
        raise Corrupted(str(study.manifest), run, "a manifest of run ids, each of 12 hexadecimal digits")
    return folder_of(roots, run)


def _others(roots: Roots, study: StudyFolder) -> Mapping[str, str]:
    """By run id, the first other study that names it."""
    found: dict[str, str] = {}
    for name in names(roots):
        if name != study.name:
            for row in StudyFolder(roots.studies / name).rows():
                found.setdefault(row.id, name)
    return found


def _spacious(run: RunFolder, snapshots: bool) -> list[Path]:
    """The folders of a run that may be freed, where they exist; also what an interrupted clean left."""
    wanted = [run.checkpoint, *([run.path / "snapshots"] if snapshots else []), *sorted(run.path.glob(f"{DOOMED}*"))]
    return [path for path in wanted if path.is_symlink() or path.is_dir()]


def _looked_at(run: RunFolder, path: Path, other: str, failed: bool) -> Item:
    if path.is_symlink() or run.path.is_symlink():
        return Item(run, path, 0, 0, "a link, which is not followed")
    inside = [found for found in path.rglob("*") if not found.is_dir() or found.is_symlink()]
    count, total = len(inside), sum(found.lstat().st_size for found in inside)
    owners = {found.lstat().st_uid for found in (run.path, path, *path.rglob("*"))} - {os.geteuid()}
    reason = f"study {other} has this run too" if other else _needed(run, standing(run), failed)
    return Item(run, path, count, total, f"belongs to {_user(min(owners))}" if owners else reason)


def _needed(run: RunFolder, found: Standing, failed: bool) -> str:
    """Why a run's state speaks against it; empty if it does not."""
    match found.state:
        case "done":
            return _unreadable(run)
        case "failed" if failed or found.detail == "diverged":
            return ""
        case "failed":
            return f"failed ({found.detail}), and a retry goes on from it; --failed frees it"
    return f"{found.state}; it goes on from here"


def _unreadable(run: RunFolder) -> str:
    try:
        run.read_result()
    except Corrupted:
        return "its result.json cannot be read"
    return ""


def _free(item: Item, failed: bool) -> Item:
    """Remove the folder while holding the run's claim, so that no process begins to use it; looked at again first."""
    claim = take(item.run)
    if claim is None:
        return replace(item, kept="running")
    try:
        if item.run.result.exists() or (item.run.failure.exists() and not _needed(item.run, _failed(item.run), failed)):
            doomed = item.path.with_name(f"{DOOMED}{uuid.uuid4().hex}")
            item.path.rename(doomed)
            shutil.rmtree(doomed)
            return item
        return replace(item, kept="it was begun again just now")
    finally:
        release(claim)


def _failed(run: RunFolder) -> Standing:
    return Standing("failed", failure_class_of(run))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _line(verb: str, item: Item) -> str:
    return f"{verb} {item.path}  {item.files} files  {size(item.bytes)}"
