"""What a process does for a search: take trials, ask, train them as a pack, tell; as long as there are any."""

import time
from collections.abc import Mapping, Sequence

from ablora.dispatch.base import Job
from ablora.dispatch.job import claim_of, fail, train_pack, watching
from ablora.store.claims import Alive, Claim, alive_here, is_held, release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import StudyFolder
from ablora.study.packing import Packing, packs_of
from ablora.train.observe import Observer
from ablora.tune import frozen
from ablora.tune.storage import Slot, Trials
from ablora.tune.trial import Asked, ask, put_back, report, settle

LOOK_S = 0.5


def search(
    job: Job,
    home: Roots,
    observers: Sequence[Observer] = (),
    threads: int | None = None,
    seen: Mapping[str, int] | None = None,
    alive: Alive = alive_here,
) -> None:
    """The `ablora.dispatch.job.work` of trials: the job's runs are trials, `home` has the runs that these become."""
    assert job.study is not None
    study = StudyFolder(home.studies / job.study)
    found = frozen.read(study)
    assert found is not None
    at_work = _Worker(Trials(study, found), home, watching(job, observers), threads, alive)
    seen = job.claims() if seen is None else seen
    held: list[Asked] = []
    try:
        for pack in job.packs:
            claims = [claim for slot in pack if (claim := claim_of(folder_of(job.roots, slot), seen[slot], alive))]
            held += at_work.train(claims)
        at_work.wait_for(held)
    finally:
        for asked in held:
            release(asked.claim)


class _Worker:
    def __init__(
        self, trials: Trials, home: Roots, observers: Sequence[Observer], threads: int | None, alive: Alive
    ) -> None:
        self.trials, self.home, self.observers, self.threads, self.alive = trials, home, observers, threads, alive

    def train(self, claims: Sequence[Claim]) -> list[Asked]:
        """Ask for trials, train their runs and tell; the trials whose run another process is at."""
        later: list[Asked] = []
        try:
            asked = [one for claim in claims if (one := self._ask(claim)) is not None]
            self._train(asked)
            later = [one for one in asked if not self._settled(one) and self._is_held(one.run)]
        finally:
            for claim in claims:
                if all(claim is not one.claim for one in later):
                    release(claim)
        return later

    def wait_for(self, held: Sequence[Asked]) -> None:
        """Two trials of one specification are one run: whoever trains it, both are told."""
        for one in held:
            while self._is_held(one.run):
                time.sleep(LOOK_S)
            self._settled(one)

    def _ask(self, claim: Claim) -> Asked | None:
        try:
            asked = ask(self.trials, Slot.of(claim.folder.id), claim, self.home)
        except Exception as error:
            fail(claim, error, ())
            return None
        if asked is not None:
            _set_aside(asked.run)
        return asked

    def _train(self, asked: Sequence[Asked]) -> None:
        judge = Judge(self.trials, asked)
        specs = {one.run.id: one.spec for one in asked if not one.run.result.exists()}
        judge([folder_of(self.home, run) for run in specs])  # an earlier process may have died before it could
        for pack in packs_of(
            {run: specs[run] for run in specs if run not in judge.stopped}, Packing(runs=len(specs) or 1)
        ):
            claims = [claim for run in pack if (claim := take(folder_of(self.home, run), self.alive)) is not None]
            if claims:
                train_pack(claims, self.home, self.observers, self.threads, judge)
                for one in asked:
                    self._settled(one, judge.stopped)
        for one in asked:
            self._settled(one, judge.stopped)

    def _settled(self, one: Asked, stopped: Mapping[str, int] | None = None) -> bool:
        if one.claim.folder.result.exists() or one.claim.folder.failure.exists():
            return True
        try:
            if one.run.result.exists() and len(self.trials.search.tuner.metrics) == 1:
                report(one, self.trials.search.tuner.metrics[0])
            return settle(one, self.trials, one.run.id in (stopped or {}))
        except Exception as error:  # of one trial, such as a metric that its run does not have
            put_back(one, self.trials)
            fail(one.claim, error, ())
            return True

    def _is_held(self, run: RunFolder) -> bool:
        return is_held(run, self.alive)


class Judge:
    """Ends runs early by what their trials' pruner says of the evaluations between."""

    def __init__(self, trials: Trials, asked: Sequence[Asked]):
        tuner = trials.search.tuner
        self.metric = tuner.metrics[0] if tuner.pruner != "none" else None
        self.sign = 1 if tuner.directions[0] == "minimize" else -1
        self.asked = {one.run.id: one for one in reversed(asked)}
        self.stopped: dict[str, int] = {}
        """The step after which a run was ended, by its id."""

    def __call__(self, runs: Sequence[RunFolder]) -> set[str]:
        """Which of the runs end here.

        Those of a pack arrive together: all are told before any is judged, and the best is judged first. ASHA compares
        with those that were judged before: from the worst to the best it would end none.
        """
        if self.metric is None:
            return set()
        own = [self.asked[run.id] for run in runs if run.id in self.asked]
        told = [(last[1] * self.sign, last[0], one) for one in own if (last := report(one, self.metric)) is not None]
        told.sort(key=lambda each: each[0])
        out = {one.run.id: step for _, step, one in told if one.trial.should_prune()}
        self.stopped |= out
        return set(out)


def _set_aside(run: RunFolder) -> None:
    """A failure that the user wants tried again; divergence would only be repeated."""
    if run.failure.exists() and run.read_failure()["class"] != "diverged":
        run.set_failure_aside()
