"""What the runs of a plan will write: bytes and files, counted from parameters and from the files that a run has.

Lengths of lines are those of finished runs on the embedded base; a test holds the sums against real folders.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablora.evals.forgetting import Forgetting
from ablora.evals.generation import Generation
from ablora.evals.routing import Routing
from ablora.method.full import Full
from ablora.method.lowrank import LowRank
from ablora.method.plan import modules_of
from ablora.spec import RunSpec
from ablora.train.memory import MOMENTS
from ablora.train.memory_model import displaced

NUMBER = 4
"""Bytes of a trained number and of an optimizer's moments."""
RECORDS = 8
"""spec, env, events, metrics, timing, result, a claim and its release."""
RECORD_BYTES = 3600
"""Those of them that do not grow with the run."""
STEP_BYTES = 300
"""A logged step in metrics and timing."""
LOOK_BYTES = 250
"""An evaluation's line in metrics."""
MODULE_BYTES = 400
"""A module in result and adapter: its records, and the headers of its tensors."""
ITEM_BYTES = 100
CHUNK_BYTES = 250
ROUTE_BYTES = 2300
TOKEN_BYTES = 2
"""A generated token, were every answer as long as it may be; most are shorter."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What a run takes."""

    files: int
    bytes: int
    """When it is done."""
    checkpoint_bytes: int
    """While it runs: two slots, each with the trained numbers and the optimizer's."""


def disk_of(spec: RunSpec, parameters: int, items: Mapping[str, int]) -> Disk:
    """One run's, from its trained parameters and the items of its data set's splits; a tracker's log is not in it."""
    modules = modules_of(spec.model.folder, spec.adapter.targets)
    copies, exported = _adapter(spec.method)
    tasks = [_task(task, items, modules) for task in spec.eval.tasks.values() if _applies(task, spec.method)]
    steps = -(-spec.train.max_steps // spec.train.log_every)
    text = RECORD_BYTES + MODULE_BYTES * modules + STEP_BYTES * steps + LOOK_BYTES * looks(spec) * len(tasks)
    slot = NUMBER * parameters * (1 + MOMENTS[spec.train.optimizer])
    files = RECORDS + 2 + 2 * exported + len(tasks)
    return Disk(files, text + sum(tasks) + NUMBER * parameters * copies * (1 + exported), 2 * slot)


def looks(spec: RunSpec) -> int:
    """How often a run is evaluated."""
    every, steps = spec.eval.every, spec.train.max_steps
    between = (steps - 1) // every if every and steps else 0
    return bool(spec.eval.at_start and steps) + between + 1


def disk_of_all(
    runs: Iterable[str], specs: Mapping[str, RunSpec], parameters: Mapping[str, int], items: Mapping[Any, Any]
) -> Iterator[tuple[str, Disk]]:
    """By run; those that differ in nothing that counts here are counted once."""
    seen: dict[tuple[Any, ...], Disk] = {}
    for run in runs:
        spec = specs[run]
        parts = spec.method, spec.model, spec.adapter, spec.train, spec.eval, spec.dataset
        key = (*map(id, parts), parameters[run])
        if key not in seen:
            seen[key] = disk_of(spec, parameters[run], items[spec.dataset])
        yield run, seen[key]


def _adapter(method: Any) -> tuple[int, bool]:
    """How many numbers are saved for a trained one, and whether PEFT's layout lies beside them."""
    match method:
        case Full():
            return 1, False
        case LowRank():
            return 1 + displaced(method.init), method.structure.experts == 1
    return 1, not hasattr(method, "structure")


def _applies(task: Any, method: Any) -> bool:
    """Routing writes nothing of what is no mixture."""
    return not isinstance(task, Routing) or (isinstance(method, LowRank) and method.structure.experts > 1)


def _task(task: Any, items: Mapping[str, int], modules: int) -> int:
    """Bytes of the items of an evaluation."""
    found = min(items.get(task.split, 0), task.max_items or items.get(task.split, 0))
    match task:
        case Routing():
            return ROUTE_BYTES * modules
        case Forgetting():
            return CHUNK_BYTES * (task.max_chunks or 0)
        case Generation():
            return (ITEM_BYTES + TOKEN_BYTES * task.max_new_tokens) * found
    return ITEM_BYTES * found
