"""Where each run stands, from disk and the host alone."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablora.spec import check
from ablora.store import atomic
from ablora.store.claims import is_held, latest
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, State, folder_of
from ablora.study.manifest import Row, StudyFolder

ORDER: tuple[State, ...] = ("done", "running", "planned", "lost", "failed", "stale")


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of one run, and in a few words what there is to say about it."""

    state: State
    detail: str = ""


def standing(folder: RunFolder) -> Standing:
    """The state of a run. The host is asked first and the disk second: a run that ends in between is seen as done.

    planned: nobody runs it; with a step, it was stopped there and goes on from its checkpoint.
    lost: a process claimed it, is gone, and left neither result nor failure; the same command resumes it.
    """
    held = is_held(folder)
    if folder.result.exists():
        return Standing("done")
    if held:
        return Standing("running", last_step(folder))
    if folder.failure.exists():
        return Standing("failed", failure_class_of(folder))
    generation = latest(folder)
    released = generation < 0 or (folder.path / f"claim.{generation}.released").exists()
    return Standing("planned" if released else "lost", last_step(folder))


def standings(roots: Roots, rows: Sequence[Row]) -> dict[str, Standing]:
    """By run id, each run once. 1,000 runs take 0.1 s: no specification is read."""
    return {run: standing(folder_of(roots, run)) for run in dict.fromkeys(row.id for row in rows)}


def with_stale(roots: Roots, found: Mapping[str, Standing]) -> dict[str, Standing]:
    """The same with `stale` for done runs to which today's code or data gives another id.

    Builds every specification and hashes its data again (some ms per run and more with large data), so it is asked
    for with --check-stale and is no part of a plain status.
    """
    return {run: _staleness(folder_of(roots, run)) or state if state.state == "done" else state
            for run, state in found.items()}  # fmt: skip


def _staleness(folder: RunFolder) -> Standing | None:
    try:
        return Standing("stale", "another id today") if folder.is_stale() else None
    except ValueError as error:  # an axis value that is gone, a field renamed, data moved away
        return Standing("stale", str(error))


def failure_class_of(folder: RunFolder) -> str:
    return str(failure_of(folder)["class"])


def failure_of(folder: RunFolder) -> Mapping[str, object]:
    """The failure record; one that cannot be read is a failure all the same."""
    try:
        record = folder.read_failure()
    except atomic.Corrupted as error:
        record = {"message": str(error)}
    return {"class": "bug", "message": "", **(record if isinstance(record, dict) else {})}


def require_done(roots: Roots, study: StudyFolder) -> None:
    """Refuse a study of which no run is done yet, with its counts and what to type."""
    found = standings(roots, study.rows())
    next_ = f"`ablora resume {study.name}` goes on with it, `ablora watch {study.name}` shows how far it is"
    legal = f"a study with a finished run; this one has {counts(found)}. {next_}"
    check(any(standing.state == "done" for standing in found.values()), "STUDY", study.name, legal)


def last_step(folder: RunFolder) -> str:
    """The last step in metrics.jsonl, read from its end; empty before the first."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            tail = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(tail):
        try:
            return f"step {json.loads(line)['step']}"
        except (ValueError, KeyError, TypeError):
            continue  # a torn line, or the cut-off first one
    return ""


def table(study: StudyFolder, rows: Sequence[Row], found: Mapping[str, Standing]) -> Iterator[str]:
    """Lines of text: one per run with its labels, then the counts per state."""
    shown = {}
    for row in rows:
        shown.setdefault(row.id, " ".join(f"{key}={value}" for key, value in row.labels.items()) or row.method)
    width = max((len(standing.detail) for standing in found.values()), default=0)
    for run, labels in shown.items():
        yield f"{run}  {found[run].state:<8} {found[run].detail:<{width}}  {labels}"
    yield f"{study.name}: {counts(found)}"


def counts(found: Mapping[str, Standing]) -> str:
    number = Counter(standing.state for standing in found.values())
    parts = [f"{number[state]} {state}" for state in ORDER if number[state]]
    return f"{len(found)} runs" + (f" ({', '.join(parts)})" if parts else "")
