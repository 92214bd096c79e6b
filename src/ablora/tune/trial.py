"""One trial: asked for once, a run like any other, and told to Optuna once.

studies/<name>/search/trials/<slot>/
  claim.<n>.json   who is at it, by the same rules as a run's
  trial.json       {"schema", "slot", "arm", "number", "values", "labels", "run"}: what was proposed, which run it is
  metrics.jsonl    a link to the run's
  result.json      {"schema", "id", "run", "state": complete, pruned or diverged, "values", "metrics"}: it was told
  failure.json     otherwise, why it has to be looked at; Optuna has the trial as waiting
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablora.spec import RunSpec, check
from ablora.store import atomic, lines
from ablora.store.claims import Claim
from ablora.store.roots import Roots
from ablora.store.run_folder import SCHEMA, RunFolder, create, folder_of, metric_name
from ablora.tune.frozen import Search, spec_of
from ablora.tune.storage import Slot, Trials

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial with its parameters."""

    slot: Slot
    claim: Claim
    """On the trial."""
    run: RunFolder
    spec: RunSpec
    trial: "Trial"


def trial_file(folder: RunFolder) -> Path:
    return folder.path / "trial.json"


def ask(trials: Trials, slot: Slot, claim: Claim, home: Roots) -> Asked | None:
    """The trial's run, which has a folder then: proposed now, or what was proposed before. None where Optuna has it as
    ended already; its result is written then."""
    from optuna.trial import Trial, TrialState

    study, number = trials.study(slot), trials.id_of(slot)
    known = trials.storage.get_trial(number)
    path = trial_file(claim.folder)
    if known.state.is_finished():  # told by one that died before it could write it down
        record = atomic.read_json(path)
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "diverged"}[known.state.name]
        _write_result(claim, folder_of(home, record["run"]), state, known.values or [])
        return None
    if known.state == TrialState.WAITING:
        trials.storage.set_trial_state_values(number, state=TrialState.RUNNING)
    trial = Trial(study, number)
    arm = trials.search.arms[slot.arm]
    values = atomic.read_json(path)["values"] if path.exists() else _propose(trials.search, slot, trial)
    spec = spec_of(arm, values)
    run = create(home, spec)
    record = {"slot": str(slot), "arm": arm.name, "number": slot.number, "values": values, "run": run.id}
    claim.fence()
    atomic.write_json(path, {"schema": SCHEMA, **record, "labels": trials.search.labels(arm, values)})
    with suppress(FileExistsError):
        claim.folder.metrics.symlink_to(os.path.relpath(run.metrics, claim.folder.path))
    trial.set_user_attr("run", run.id)
    return Asked(slot, claim, run, spec, trial)


def _propose(search: Search, slot: Slot, trial: "Trial") -> dict[str, Any]:
    """What the sampler says: first the choices that decide what else there is."""
    space, arm = search.by_name, search.arms[slot.arm]
    values = {name: space[name].suggest(trial) for name in arm.variants[0].choices}
    return values | {name: space[name].suggest(trial) for name in arm.variant(values).names}


def report(asked: Asked, metric: str) -> tuple[int, float] | None:
    """Tell Optuna the evaluations between that the run has had; the last one's step and value, if there was one. What
    was told stays as it was."""
    steps = asked.spec.train.max_steps
    known = asked.trial.storage.get_trial(asked.trial._trial_id).intermediate_values
    last = None
    for record in lines.read(asked.run.metrics):
        if record["kind"] == "eval" and 0 < record["step"] < steps:
            for name, value in record["metrics"].items():
                if metric_name(record["split"], name) == metric:
                    last = record["step"], value
                    if record["step"] not in known:
                        asked.trial.report(value, record["step"])
    return last


def settle(asked: Asked, trials: Trials, pruned: bool) -> bool:
    """Tell how the run ended, and write that down; False if it has not ended."""
    from optuna.trial import TrialState

    if asked.run.result.exists():
        metrics = asked.run.read_result()["metrics"]
        _tell(asked, trials, TrialState.COMPLETE, values_of(trials.search, metrics))
        _write_result(asked.claim, asked.run, "complete", values_of(trials.search, metrics), metrics)
    elif pruned:
        _tell(asked, trials, TrialState.PRUNED)
        _write_result(asked.claim, asked.run, "pruned", [])
    elif asked.run.failure.exists():
        _settle_failure(asked, trials)
    else:
        return False
    return True


def _settle_failure(asked: Asked, trials: Trials) -> None:
    """Divergence is an answer; anything else has to be looked at, and the trial waits for that."""
    from optuna.trial import TrialState

    failure = asked.run.read_failure()
    asked.trial.set_user_attr("failure", failure["class"])
    if failure["class"] == "diverged":
        _tell(asked, trials, TrialState.FAIL)
        _write_result(asked.claim, asked.run, "diverged", [])
        return
    put_back(asked, trials)
    atomic.write_json(asked.claim.folder.failure, {**failure, "id": asked.claim.folder.id, "run": asked.run.id})


def put_back(asked: Asked, trials: Trials) -> None:
    """Let Optuna show a trial as waiting: it has no answer, and is taken up again when somebody asks for it."""
    from optuna.trial import TrialState

    asked.claim.fence()
    trials.storage.set_trial_state_values(asked.trial._trial_id, state=TrialState.WAITING)


def _tell(asked: Asked, trials: Trials, state: Any, values: Sequence[float] | None = None) -> None:
    asked.claim.fence()
    trials.study(asked.slot).tell(asked.slot.number, values, state=state, skip_if_finished=True)


def _write_result(
    claim: Claim, run: RunFolder, state: str, values: Sequence[float], metrics: Mapping[str, float] | None = None
) -> None:
    claim.fence()
    record = {"schema": SCHEMA, "id": claim.folder.id, "run": run.id, "state": state, "values": list(values)}
    atomic.write_json(claim.folder.result, {**record, "metrics": dict(metrics or {})})


def values_of(search: Search, metrics: Mapping[str, float]) -> list[float]:
    """The objectives' values."""
    for name in search.tuner.metrics:
        check(name in metrics, "tuner.metrics", name, f"a metric of the runs: {', '.join(sorted(metrics))}")
    return [metrics[name] for name in search.tuner.metrics]
