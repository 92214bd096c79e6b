"""What a search has found, in lines of text."""

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ablora.dispatch.queue import Queue, queue_of
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora.study.manifest import Row, StudyFolder
from ablora.study.status import Standing, standings
from ablora.tune import fair, frozen
from ablora.tune.storage import Slot, Trials
from ablora.tune.trial import trial_file

DONE, UNFINISHED = 0, 3


def report(roots: Roots, study: StudyFolder, trials: Trials, queue: Queue | None = None) -> int:
    """Print what each arm's best trial is, and what is not over; 0 if every trial is over or SLURM has it."""
    found = states(roots, study, trials, queue)
    for line in (*best(study, trials), *fair.outlook(study, trials)):
        print(line)
    left = {slot: standing for slot, standing in found.items() if standing.state != "done"}
    for slot, standing in left.items():
        if standing.state == "failed":
            failure = RunFolder(study.trials / slot).read_failure()
            first = (str(failure["message"]).strip().splitlines() or [""])[0]
            print(f"{slot} failed: {failure['class']}: {first}", file=sys.stderr)
    print(f"study {study.name}: {counts(study, found)} ({study.path})", file=sys.stderr if left else sys.stdout)
    if not left or (queue and all(standing.state in ("queued", "running") for standing in left.values())):
        return DONE
    print(f"to go on: ablora resume {study.name}; with the failed ones too: ablora retry {study.name}", file=sys.stderr)
    return UNFINISHED


def states(roots: Roots, study: StudyFolder, trials: Trials, queue: Queue | None = None) -> dict[str, Standing]:
    """Where each trial stands, by its slot."""
    rows = [Row(str(slot), {}, "", 0) for slot in trials.slots()]
    return standings(Roots(study.trials, roots.studies, roots.cache), rows, queue)


def counts(study: StudyFolder, found: dict[str, Standing]) -> str:
    """How many trials there are, and how they ended."""
    number = Counter(_word(study, slot, standing) for slot, standing in found.items())
    return f"{len(found)} trials (" + ", ".join(f"{n} {word}" for word, n in number.most_common()) + ")"


def _word(study: StudyFolder, slot: str, standing: Standing) -> str:
    return str(_result(study, slot)["state"]) if standing.state == "done" else standing.state


def _result(study: StudyFolder, slot: str) -> dict[str, Any]:
    return RunFolder(study.trials / slot).read_result()


def best(study: StudyFolder, trials: Trials) -> Iterator[str]:
    """Of each arm the best trial by the first objective; with several objectives the Pareto front, as Optuna has it."""
    metrics, several = trials.search.tuner.metrics, len(trials.search.tuner.metrics) > 1
    for i, arm in enumerate(trials.search.arms):
        done = [t for t in trials.study(Slot(i, 0)).get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
        if not done:
            continue
        front = trials.study(Slot(i, 0)).best_trials
        yield f"{arm.name}: {f'{len(front)} trials on the Pareto front' if several else 'best'} of {len(done)} complete"
        for trial in sorted(front, key=lambda t: t.number):
            values = " ".join(f"{name} {value:.4g}" for name, value in zip(metrics, trial.values))
            where = " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
            yield f"  trial {trial.number}: {values} at {where} (run {trial.user_attrs.get('run')})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def status_lines(roots: Roots, study: StudyFolder) -> Iterator[str]:
    """The trials of a study as `ablora status` shows them, and what its protocol decided."""
    search = frozen.read(study)
    assert search is not None
    trials = Trials(study, search)
    queue = queue_of(Roots(study.trials, roots.studies, roots.cache), study.trials.parent)
    yield from table(study, trials, states(roots, study, trials, queue))
    yield from best(study, trials)
    yield from fair.outlook(study, trials)


def table(study: StudyFolder, trials: Trials, found: dict[str, Standing]) -> Iterator[str]:
    """A line per trial: its state, value and parameters."""
    for slot, standing in found.items():
        path = RunFolder(study.trials / slot)
        record = _trial(path)
        values = "" if standing.state != "done" else " ".join(f"{v:.4g}" for v in _result(study, slot)["values"])
        labels = " ".join(f"{key}={_short(value)}" for key, value in record["labels"].items())
        word = _word(study, slot, standing)
        yield f"{slot}  {word:<8} {standing.detail:<10} {values:<8} {record['run']:<12}  {labels}".rstrip()
    yield f"{study.name}: {counts(study, found)}"


def _trial(folder: RunFolder) -> dict[str, Any]:
    path = trial_file(folder)
    return atomic.read_json(path) if path.exists() else {"labels": {}, "run": ""}
