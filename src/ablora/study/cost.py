"""What a plan costs: jobs, memory, disk and time, as far as each can be told before anything is run."""

from collections.abc import Hashable, Iterator, Mapping, Sequence

from ablora.spec import RunSpec
from ablora.store.roots import Roots
from ablora.study.disk import Disk, disk_of_all
from ablora.study.execution import Execution
from ablora.study.packing import limit_of
from ablora.study.past import Hours, Past
from ablora.study.plan import Plan

KINDS = 3
"""Kinds of runs that are weighed for a plan alone: each takes up to some seconds."""
Packs = Sequence[Sequence[str]]


def costs(plan: Plan, packs: Packs, execution: Execution, past: Past) -> Iterator[str]:
    """Lines on what the packs that are to run will take; none if there are none."""
    if not packs:
        return
    missing = [run for pack in packs for run in pack]
    first = _preparations([plan.specs[run] for run in missing], past.roots) if execution.cluster.prepares else 0
    after = f", after {first} that fill{'s' * (first == 1)} the caches" if first else ""
    yield f"jobs: {execution.cluster.jobs(len(packs))}{after}"
    yield f"memory: {_memory(plan.specs, packs, execution)}"
    disk = dict(disk_of_all(missing, plan.specs, plan.parameters, plan.items))
    yield f"disk: {_disk(disk, packs, execution.cluster.at_once(len(packs)))}"
    yield f"time: {_time(past.hours(missing))}"


def _preparations(specs: Sequence[RunSpec], roots: Roots) -> int:
    """Bases for which the caches lack something."""
    from ablora.train.needs import missing, needs_of  # late: it imports torch

    return len({need.spec.model for need in missing(needs_of(specs).values(), roots.cache)})


def _memory(specs: Mapping[str, RunSpec], packs: Packs, execution: Execution) -> str:
    """The largest prediction among the packs that packing weighed, and of the largest others; it is told why not."""
    packing, place_gib = execution.packing, execution.cluster.memory_gib
    limit = limit_of([specs[run] for pack in packs for run in pack], packing, place_gib)
    if limit is None and place_gib is not None:
        return "not weighed: the base is small beside what there is; memory.limit_gib=... weighs every pack"
    weighed = _weighed(specs, packs, limit is not None and packing.runs > 1)
    if not weighed:
        return "not weighed: the largest pack has too many kinds of run; memory.limit_gib=... weighs every pack"
    from ablora.train.memory import predict  # late: it imports torch

    most = max(predict([specs[run] for run in pack]).peak_bytes for pack in weighed)
    of = "" if len(weighed) == len(packs) else f", of the {len(weighed)} largest of {len(packs)} packs"
    return f"{most / 2**30:.2f} GiB at most in a process, as predicted{of} (docs/performance.md: how well)"


def _weighed(specs: Mapping[str, RunSpec], packs: Packs, by_packing: bool) -> list[Sequence[str]]:
    """The packs whose prediction is cheap: all of a kind that is known, and the largest of others."""
    kinds = {tuple(pack): {_kind(specs[run]) for run in pack} for pack in packs}
    known = {kind for pack, own in kinds.items() if by_packing and len(pack) > 1 for kind in own}
    out: list[Sequence[str]] = []
    more: set[Hashable] = set()
    for pack in sorted(kinds, key=lambda pack: _size(specs, pack), reverse=True):
        if len(more | (kinds[pack] - known)) <= KINDS:
            more |= kinds[pack] - known
            out.append(pack)
    return out


def _kind(spec: RunSpec) -> Hashable:
    """What a prediction counts once, about."""
    return id(spec.method), id(spec.model), id(spec.adapter), spec.rank, id(spec.dataset)


def _size(specs: Mapping[str, RunSpec], pack: Sequence[str]) -> int:
    """What activations grow with."""
    trains = [specs[run].train for run in pack]
    return sum((train.micro_batch or train.batch_size) * train.max_tokens for train in trains)


def _disk(disk: Mapping[str, Disk], packs: Packs, at_once: int) -> str:
    heaviest = sorted((sum(disk[run].checkpoint_bytes for run in pack) for pack in packs), reverse=True)
    done = sum(one.bytes for one in disk.values())
    files = sum(one.files for one in disk.values())
    return (f"about {_size_of(done)} in {files:,} files, and up to {_size_of(sum(heaviest[:at_once]))} of checkpoints "
            "while they run; a tracker's log comes on top")  # fmt: skip


def _size_of(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _time(hours: Hours) -> str:
    if not hours.by_device:
        return "no run like these has been timed here"
    parts = [f"{spent:.2g} {'processor' if device.startswith('cpu') else 'GPU'}-hours ({device})"
             for device, spent in hours.by_device.items()]  # fmt: skip
    rest = f"; {hours.unknown} runs are like none that was timed" if hours.unknown else ""
    return f"about {' and '.join(parts)} for {hours.timed} runs, by runs like them{rest}"
