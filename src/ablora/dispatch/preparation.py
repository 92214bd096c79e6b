"""A job that fills the caches for one base, sent before the arrays whose runs need them; SLURM lets these wait for it.

Its end is a file beside its record: where there is no accounting, SLURM does not tell how a job that is gone has ended.
"""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablora.dispatch import scheduler, submissions
from ablora.dispatch.base import Job
from ablora.dispatch.submissions import Submission
from ablora.spec import RunSpec
from ablora.store import atomic
from ablora.store.run_folder import folder_of
from ablora.tree import build

Pack = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Packs of one base, and what they lack in the caches."""

    base: str
    packs: tuple[Pack, ...]
    keys: tuple[str, ...] = ()
    """Of what is lacking; none where everything is there."""
    runs: tuple[str, ...] = ()
    """Runs that need it between them."""


def prepare_in_task(job: Job, done: Path) -> None:
    """Make what the job's runs need; what stands in the way ends the job as failed, and what was made stays."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # there is no checkpoint to be written: every file is whole
    from ablora.train.needs import missing, needs_of  # late: they import torch, which reads the environment
    from ablora.train.prepare import prepare

    specs = [folder_of(job.roots, run).read_spec() for run in job.runs]
    lacking = missing(needs_of(specs).values(), job.roots.cache)
    for need, files in prepare(lacking, job.roots.cache):
        print(f"{need}: {sum(files.values())} made, {len(files) - sum(files.values())} there already", flush=True)
    atomic.write_json(done, {"schema": submissions.SCHEMA, "needs": len(lacking)})


def groups(job: Job, packs: Sequence[Pack]) -> list[Group]:
    """The packs by base, each with what is lacking for it."""
    trees = {run: tree for pack in packs for run in pack if (tree := _tree(job, run)) is not None}
    by_base: dict[str, list[Pack]] = {}
    for pack in packs:
        found = next((json.dumps(trees[run]["model"], sort_keys=True) for run in pack if run in trees), "")
        by_base.setdefault(found, []).append(pack)
    return [_lacking(job, base, tuple(own), trees) for base, own in by_base.items()]


def _tree(job: Job, run: str) -> dict[str, Any] | None:
    """None for what is no run: it brings no specification."""
    folder = folder_of(job.roots, run)
    return folder.read_tree() if folder.spec.exists() else None


def _lacking(job: Job, base: str, packs: tuple[Pack, ...], trees: Mapping[str, dict[str, Any]]) -> Group:
    from ablora.train.needs import missing, needs_of  # late, as above

    specs = dict(_distinct({run: trees[run] for pack in packs for run in pack if run in trees}))
    names = {id(spec): run for run, spec in specs.items()}
    lacking = missing(needs_of([*specs.values()]).values(), job.roots.cache)
    runs = dict.fromkeys(names[id(need.spec)] for need in lacking)
    return Group(base, packs, tuple(need.key for need in lacking), tuple(runs))


def _distinct(trees: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, RunSpec]]:
    """Runs that may need different things: thousands that differ in seed and rate are read as one, unless their starts
    depend on the seed."""
    from ablora.train.needs import is_seeded

    alike: dict[str, list[str]] = {}
    for run, tree in trees.items():
        own = {key: tree[key] for key in ("model", "method", "dataset", "adapter", "eval", "rank")}
        text = json.dumps([own, tree["train"].get("max_tokens")], sort_keys=True)
        alike.setdefault(text, []).append(run)
    for first, *others in alike.values():
        spec = build(trees[first], RunSpec)
        yield first, spec
        for run in others if is_seeded(spec) else ():
            yield run, build(trees[run], RunSpec)


def waiting_for(study: Path, group: Group) -> Submission | None:
    """A preparation that was sent before, is not through, and makes what the group lacks."""
    records = [record for record in submissions.read(study) if set(group.keys) <= set(record.prepares)]
    open_ = [record for record in records if record.phase in ("held", "released") and record.job]
    open_ = [record for record in open_ if not submissions.is_prepared(study, record.name)]
    if not group.keys or not open_:
        return None
    queued = scheduler.queued(sorted({record.user for record in open_}))
    return next((record for record in open_ if record.job in queued), None)
