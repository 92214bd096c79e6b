"""What is missing: compare what should exist with what does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablora.dispatch.attempts import allow_more, is_exhausted
from ablora.dispatch.queue import Queue
from ablora.spec import check
from ablora.store.claims import deaths
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import Row
from ablora.study.status import Standing, failure_class_of, standings


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference between a study and the run folders."""

    found: dict[str, Standing]
    packs: tuple[tuple[str, ...], ...]
    """The runs to be sent, by their packs: never run, stopped, or lost."""

    def having(self, state: str) -> list[str]:
        return [run for run, standing in self.found.items() if standing.state == state]


def reconcile(roots: Roots, rows: Sequence[Row], queue: Queue | None = None) -> Gap:
    """Skips what is done, what a living process holds or SLURM has, and what failed. A result that cannot be read is an
    error that names the file: it would otherwise be counted as done, or be overwritten without a word."""
    found = standings(roots, rows, queue)
    for run, standing in found.items():
        if standing.state == "done":
            folder_of(roots, run).read_result()
    packs: dict[int, list[str]] = {}
    for row in rows:
        if row.duplicate_of is None and _is_missing(folder_of(roots, row.id), found[row.id]):
            packs.setdefault(row.pack, []).append(row.id)
    parts = (part for number in sorted(packs) for part in _parts(roots, packs[number], found))
    return Gap(found, tuple(map(tuple, parts)))


def _is_missing(folder: RunFolder, standing: Standing) -> bool:
    return standing.state == "planned" or (standing.state == "lost" and not is_exhausted(folder))


def _parts(roots: Roots, pack: Sequence[str], found: Mapping[str, Standing]) -> Iterator[Sequence[str]]:
    """A pack whose process died goes on in halves, in quarters after a second death, and so on: a run that kills its
    process, or the memory that the pack does not have, must not keep its pack-mates from ending."""
    died = max((deaths(folder_of(roots, run)) for run in pack if found[run].state == "lost"), default=0)
    size = max(1, -(-len(pack) // 2 ** min(died, 10)))
    for at in range(0, len(pack), size):
        yield pack[at : at + size]


def clear_failures(roots: Roots, rows: Sequence[Row], only: str | None, queue: Queue | None = None) -> list[str]:
    """Set failures aside as failure.<n>.json, so that the runs are tried again; all, or those of one class.

    A run that SLURM's timeout, preemption or node failure ended has that class too, and no file to be set aside: going
    on resumes it anyway, unless it has died too often; that is allowed anew.
    """
    found = standings(roots, rows, queue)
    lost = {run: place.ended for run, s in found.items()
            if s.state == "lost" and queue and (place := queue.place(run)) is not None and place.ended}  # fmt: skip
    failed = failures(roots, rows, queue)
    classes = failed | lost
    legal = f"the class of a failed run of this study: {', '.join(sorted(set(classes.values()))) or 'none has failed'}"
    check(only is None or only in classes.values(), "--only", only, legal)
    chosen = [run for run in classes if only in (None, classes[run])]
    for run in filter(failed.__contains__, chosen):
        folder_of(roots, run).set_failure_aside()
    for run, standing in found.items():
        if standing.state == "lost" and only in (None, lost.get(run)) and is_exhausted(folder_of(roots, run)):
            allow_more(folder_of(roots, run), lost.get(run) or "node_failure")
            chosen += [] if run in chosen else [run]
    return chosen


def failures(roots: Roots, rows: Sequence[Row], queue: Queue | None = None) -> dict[str, str]:
    """The class of every failed run, by id."""
    found = standings(roots, rows, queue)
    return {r: failure_class_of(folder_of(roots, r)) for r, standing in found.items() if standing.state == "failed"}
