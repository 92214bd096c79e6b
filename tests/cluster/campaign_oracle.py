"""What must hold of every run at the end of a round of faults, read from its folder and the journal of its lives."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablora.store import atomic, lines
from ablora.store.run_folder import RunFolder

EVERY = 10
"""Steps between checkpoints, as `campaign_task` makes them."""
KINDS = ("lost", "twice", "steps", "state")


class Violation(NamedTuple):
    """Something that must never be."""

    kind: str
    """lost: no result at the end; twice: two processes at once, or a result written again; steps: one left out,
    doubled, out of order, or trained again in spite of a checkpoint; state: a failure that nobody caused, or one that
    is not recorded."""
    run: str
    text: str


def journal_of(place: Path, run: str) -> list[dict[str, Any]]:
    return list(lines.read(place / "lives" / f"{run}.jsonl"))


def judge(
    folder: RunFolder, journal: Sequence[Mapping[str, Any]], seen: bytes | None = None,
    caused: Counter[str] | None = None, may: frozenset[str] = frozenset(),
) -> list[Violation]:  # fmt: skip
    """All that is wrong with a run. `seen`: its result when it was first there. `caused`: how often it was made to
    fail, by class; `may`: classes that it may have besides, as they hit whoever wrote at the time."""
    found = [*_result(folder, seen), *_steps(folder), *_lives(journal, folder)]
    if caused is not None:
        found += _failures(folder, caused, may)
    return [Violation(kind, folder.id, text) for kind, text in found]


def _result(folder: RunFolder, seen: bytes | None) -> Iterator[tuple[str, str]]:
    if not folder.result.exists():
        yield "lost", "no result" + (", and there was one" if seen is not None else "")
    elif seen is not None and folder.result.read_bytes() != seen:
        yield "twice", "its result was written again"


def _steps(folder: RunFolder) -> Iterator[tuple[str, str]]:
    steps = [record["step"] for record in lines.read(folder.metrics)]
    last = folder.read_result()["step"] if folder.result.exists() else len(steps)
    if steps != list(range(1, last + 1)):
        doubled = sorted(step for step, times in Counter(steps).items() if times > 1)
        missing = sorted(set(range(1, last + 1)) - set(steps))
        yield "steps", f"{len(steps)} of {last} steps, doubled: {doubled[:9]}, left out: {missing[:9]}"


def _lives(journal: Sequence[Mapping[str, Any]], folder: RunFolder) -> Iterator[tuple[str, str]]:
    """No life writes when a later one has begun; each goes on where the one before had its checkpoint."""
    order: list[str] = []
    last: Mapping[str, Any] = {}
    reached, saved, finished = 0, 0, None
    for line in journal:
        if line["life"] not in order:
            order.append(line["life"])
        elif line["life"] != order[-1]:
            yield "twice", f"life {line['life']} wrote when {order[-1]} had begun"
        if "start" in line:
            yield from _resumed(line["start"], reached, saved)
            reached = saved = line["start"]
        if finished is not None:
            yield "twice", f"life {line['life']} trained when {finished} had finished"
        if "step" in line:
            reached = line["step"]
            saved = reached if reached % EVERY == 0 else saved
        if "stop" in line:
            saved = line["stop"]
        finished = line["life"] if "finish" in line else finished
        last = line
    if folder.result.exists() and (life := folder.read_result().get("life")) != last.get("life"):
        yield "twice", f"the result is that of life {life}, the last one is {last.get('life')}"


def _resumed(start: int, reached: int, saved: int) -> Iterator[tuple[str, str]]:
    """A death between a step and its checkpoint costs that one too."""
    least = saved - EVERY if reached == saved and reached % EVERY == 0 else saved
    if not least <= start <= reached + 1:
        yield "steps", f"went on at {start} with a checkpoint at {saved} and step {reached} made"


def failures_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The run's failures: those that were set aside, and the one that stands."""
    paths = [*folder.set_aside, *([folder.failure] if folder.failure.exists() else [])]
    return [atomic.read_json(path) for path in paths]


def _failures(folder: RunFolder, caused: Counter[str], may: frozenset[str]) -> Iterator[tuple[str, str]]:
    recorded = Counter(str(failure["class"]) for failure in failures_of(folder))
    for kind in sorted(recorded | caused):
        if recorded[kind] != caused[kind] and kind not in may:
            yield "state", f"{kind}: recorded {recorded[kind]} times, caused {caused[kind]} times"
