"""The last lines of a command: where the results are, or what is not done, why, and what to do about it."""

import sys
from collections.abc import Mapping, Sequence

from ablora.dispatch.attempts import is_exhausted
from ablora.dispatch.queue import Queue
from ablora.store.claims import deaths
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.confirm import outlook
from ablora.study.manifest import Row, StudyFolder
from ablora.study.status import PRUNED, Standing, counts, failure_of, standings

DONE, UNFINISHED = 0, 3


def report(roots: Roots, study: StudyFolder | None, rows: Sequence[Row], queue: Queue | None = None) -> int:
    """Print them; 0 if every run is done or SLURM still has it, 3 if any is not, whatever kept it from being done."""
    found = standings(roots, rows, queue)
    unfinished = {run: standing for run, standing in found.items() if standing.state not in ("done", PRUNED)}
    if not unfinished:
        print("\n".join(_results(roots, study, rows)))
        return DONE
    if queue and all(standing.state in ("queued", "running") for standing in unfinished.values()):
        name = study.name if study else ""
        print(f"SLURM has {len(unfinished)} of {len(found)} runs: {counts(unfinished)}\n"
              f"ablora watch {name} shows them; the same command again goes on with what they leave")  # fmt: skip
        return DONE
    for run, standing in unfinished.items():
        print(f"{run} {_why(folder_of(roots, run), standing)}", file=sys.stderr)
    for line in outlook(roots, study, rows) if study is not None else []:
        print(line, file=sys.stderr)
    print(f"{len(unfinished)} of {len(found)} runs are not done: {counts(unfinished)}", file=sys.stderr)
    for line in _advice(study, unfinished):
        print(line, file=sys.stderr)
    return UNFINISHED


def _why(folder: RunFolder, standing: Standing) -> str:
    match standing.state:
        case "failed":
            failure = failure_of(folder)
            first = (str(failure["message"]).strip().splitlines() or [""])[0]
            return f"failed: {failure['class']}: {first} ({folder.failure})"
        case "lost" if is_exhausted(folder):
            return f"lost: its process died {deaths(folder)} times without a word; `ablora retry` tries it again"
        case "lost":
            if "task" in standing.detail:
                return f"lost: {standing.detail}"
            return f"lost: its process died at {standing.detail or 'its start'} without a word"
        case "queued":
            return f"is queued by SLURM ({standing.detail})"
        case "running":
            return f"is being run by another process ({standing.detail or 'before its first step'})"
    return f"not finished: {standing.detail or 'not started'}"


def _advice(study: StudyFolder | None, unfinished: Mapping[str, Standing]) -> list[str]:
    states = {standing.state for standing in unfinished.values()}
    again = f"ablora retry {study.name} [--only CLASS]" if study else "the same command with `ablora run --retry`"
    out = []
    if states & {"lost", "planned"}:
        out.append(
            f"to go on where they stopped: {f'ablora resume {study.name}, or ' if study else ''}the same command"
        )
    if "failed" in states:
        out.append(f"to try the failed ones again: {again}")
    return out


def _results(roots: Roots, study: StudyFolder | None, rows: Sequence[Row]) -> list[str]:
    if study is not None:
        return [f"study {study.name}: all {len({row.id for row in rows})} runs are done ({study.path})",
                f"next: ablora collect {study.name}; ablora figures {study.name}"]  # fmt: skip
    folder = folder_of(roots, rows[0].id)
    metrics = "  ".join(f"{name} {value}" for name, value in folder.read_result()["metrics"].items())
    return [f"{folder.path}  {metrics}"]
