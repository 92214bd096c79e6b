"""A study that searches: its trials are made, sent, and told; then its protocol's next stage, if it has one."""

import sys
from collections.abc import Sequence
from functools import partial

from ablora.dispatch.base import Interrupted, Job
from ablora.spec import RunSpec, check
from ablora.store.roots import Roots
from ablora.study.cell import Cell
from ablora.study.confirm import CONFIRM
from ablora.study.confounds import require_none
from ablora.study.execution import Execution, execution_of
from ablora.study.main import INTERRUPTED, drain, submit
from ablora.study.manifest import Row, StudyFolder, study_folder
from ablora.study.packing import shared
from ablora.study.plan import derived_name, make
from ablora.study.reconcile import clear_failures, failures
from ablora.study.settle import settled_now
from ablora.tune import fair, frozen
from ablora.tune.absorb import absorb
from ablora.tune.frozen import Search, spec_of
from ablora.tune.report import report
from ablora.tune.storage import Slot, Trials, require_installed, require_pruning_possible
from ablora.tune.worker import search as work


def answer(
    search: Search,
    corners: Sequence[Cell],
    execution: Execution,
    arguments: Sequence[str],
    again: bool = False,
    strict: bool = False,
) -> int:
    """Make the trials that are not there yet, and go on with the search; the exit code.

    `corners`: the ends of the space as cells, each checked before anything is written. `again`, `strict`: as of a grid.
    """
    roots = Roots.from_environment()
    require_installed(search.tuner)
    require_pruning_possible(search)
    plan = make(corners)
    if strict:
        require_none(plan)
    study = study_folder(roots, execution.study or derived_name(plan))
    frozen.require_same(study, search)
    roots.require_writable()
    with study.lock():
        trials = Trials(study, search)
        trials.make()  # first, so that a database that does not answer is said before anything is written
        frozen.write(study, search)
        study.write(study.rows(), arguments, execution.to_tree())
    if again:
        _again(roots, study, trials, execution, None)
    return go_on(roots, study, execution)


def resume(name: str, roots: Roots, again: bool = False, only: str | None = None) -> int:
    """Go on with a search from its folder alone; `again`: with its failed trials (of one class, if `only`) too."""
    study = study_folder(roots, name)
    execution = execution_of({**study.read_plan()["execution"], "study": name})
    search = frozen.read(study)
    assert search is not None
    if again:
        _again(roots, study, Trials(study, search), execution, only)
    return go_on(roots, study, execution)


def _again(roots: Roots, study: StudyFolder, trials: Trials, execution: Execution, only: str | None) -> None:
    """Set the failures of trials aside; a run's own goes when its trial is taken up again."""
    own, rows = here(roots, study), rows_of(trials, execution)
    confirming = [row for row in study.rows() if row.why == CONFIRM]
    places = [
        ("trials", own, rows, settled_now(own, study.trials.parent)),
        ("confirming runs", roots, confirming, settled_now(roots, study.path)),
    ]
    classes = {what: set(failures(where, some, queue).values()) for what, where, some, queue in places}
    there = sorted(set().union(*classes.values()))
    legal = f"the class of a failure of this study: {', '.join(there) or 'nothing has failed'}"
    check(only is None or only in there, "--only", only, legal)
    for what, where, some, queue in places:
        if only is None or only in classes[what]:
            print(f"{len(clear_failures(where, some, only, queue))} failed {what} are tried again", file=sys.stderr)


def go_on(roots: Roots, study: StudyFolder, execution: Execution) -> int:
    """Send the trials that are not over, wait, and go through the protocol's stages; the exit code."""
    search = frozen.read(study)
    assert search is not None
    trials = Trials(study, search)
    sent: set[str] = set()
    folder = study.trials.parent

    def job_of(packs: tuple[tuple[str, ...], ...]) -> Job:
        own = here(roots, study)
        return Job(packs, own, study.name, execution.tracker, work=partial(work, home=roots), home=roots)

    try:
        while True:
            with study.lock():
                trials.make()  # those that a wider range adds; and what a process that was killed had not come to
            rows = rows_of(trials, execution)
            for row in rows:
                (study.trials / row.id).mkdir(parents=True, exist_ok=True)
            queue = drain(here(roots, study), folder, rows, execution, sent, job_of)
            absorb(roots, study, trials)
            if search.protocol is None or not fair.extend(study, trials, search.protocol):
                break
    except (Interrupted, KeyboardInterrupt):
        absorb(roots, study, trials)
        report(roots, study, trials)
        return INTERRUPTED
    code = report(roots, study, trials, queue)
    if search.protocol is None:
        return code
    confirming = fair.confirm(roots, study, trials, search.protocol, execution)
    return (submit(roots, study, confirming, execution) or code) if confirming else code


def here(roots: Roots, study: StudyFolder) -> Roots:
    """The folders of a control plane whose runs are trials."""
    return Roots(study.trials, roots.studies, roots.cache)


def rows_of(trials: Trials, execution: Execution) -> list[Row]:
    """Trials as a manifest has runs: neighbours that may share a pack do, `at_once` of an arm at most."""
    search, tuner = trials.search, trials.search.tuner
    groups: dict[str, list[list[Slot]]] = {}
    alike = [_alike(search, i) for i in range(len(search.arms))]
    most = execution.packing.runs
    for slot in trials.slots():
        packs = groups.setdefault(alike[slot.arm], [[]])
        mine = sum(other.arm == slot.arm for other in packs[-1])
        if len(packs[-1]) >= most or (tuner.at_once is not None and mine >= tuner.at_once):
            packs.append([])
        packs[-1].append(slot)
    together = [pack for packs in groups.values() for pack in packs if pack]
    number = {slot: i for i, pack in enumerate(together) for slot in pack}
    arms = search.arms
    return [
        Row(str(s), {**arms[s.arm].labels, "trial": s.number}, arms[s.arm].method, number[s], "trial") for s in number
    ]


def _alike(search: Search, i: int) -> str:
    """Equal for arms whose trials may share a pack; of each arm the first corner speaks for the others, and a worker
    that finds otherwise trains them one after another."""
    arm = search.arms[i]
    spec: RunSpec = spec_of(arm, next(arm.corners(search.by_name)))
    return shared(spec) if spec.method.packs else f"arm {i}"
