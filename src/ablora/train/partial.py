"""An evaluation under way, on disk: evals/<task>.partial.jsonl of each run of the pack."""

from collections.abc import Callable, Sequence
from typing import Any

from ablora.evals._kept import Kept
from ablora.store import lines
from ablora.train.member import RunState


def kept_on_disk(runs: Sequence[RunState], asked: Sequence[RunState], task: str, pause: Callable[[], None]) -> Kept:
    """What an earlier process found of this evaluation at this step; new values are appended batch by batch."""

    def write(member: int, at: int, values: Sequence[Any]) -> None:
        run = runs[member]
        if run not in asked:
            return
        run.claim.fence()
        path = run.folder.partial(task)
        path.parent.mkdir(exist_ok=True)
        found = ({"step": run.step, "place": at + i, "value": value} for i, value in enumerate(values))
        lines.append(path, found)

    return Kept([_found(run, task) if run in asked else [] for run in runs], pause, write)


def _found(run: RunState, task: str) -> list[Any]:
    """Values up to the first gap; a place that was written twice has its last value. What another step left goes."""
    path = run.folder.partial(task)
    lines.keep(path, lambda record: record["step"] == run.step)
    values = {record["place"]: record["value"] for record in lines.read(path)}
    whole = range(len(values))
    return [values[place] for place in whole] if all(place in values for place in whole) else []


def forget(run: RunState, task: str) -> None:
    """The evaluation is over and recorded."""
    run.folder.partial(task).unlink(missing_ok=True)
