"""Where trials are kept, by Optuna: one study of it per arm, made with all its trials at once.

Every trial is enqueued when the search is made, so that its number is its place and no worker can make one too many:
the total is exact however many processes there are and however many of them die.
"""

import json
import math
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablora.spec import BadInput, check
from ablora.study.manifest import StudyFolder
from ablora.tune.frozen import Arm, Search
from ablora.tune.settings import Optuna
from ablora.tune.space import combinations
from ablora.tune.verdict import Verdict, verdicts

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage


LONGEST = 1 << 20
"""Bytes of a journal's line at most."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A trial by its place: which arm, and its number there."""

    arm: int
    number: int

    def __str__(self) -> str:
        return f"trial-{self.arm:02d}-{self.number:04d}"

    @classmethod
    def of(cls, name: str) -> "Slot":
        _, arm, number = name.split("-")
        return cls(int(arm), int(number))


def require_installed(tuner: Optuna) -> None:
    """Refuse, before anything is queued, a search whose libraries are not there."""
    needs = {
        "optuna": True,
        "cmaes": tuner.sampler == "cmaes",
        "scipy": tuner.pruner == "wilcoxon" or tuner.sampler == "gp",
    }
    for name in (name for name, needed in needs.items() if needed):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            legal = f"with {name} installed: pip install 'ablora[tune]'"
            raise BadInput("tuner", "optuna", legal) from error
    import optuna

    check(int(optuna.__version__.partition(".")[0]) >= 5, "tuner", f"optuna {optuna.__version__}", "Optuna 5 or newer")


class Trials:
    """The trials of a search in its storage."""

    def __init__(self, folder: StudyFolder, search: Search):
        self.folder, self.search = folder, search

    @cached_property
    def storage(self) -> "BaseStorage":
        """Opened when it is first needed: tables and figures do without Optuna and its database."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        return _open(self.folder, self.search.tuner)

    def study_name(self, arm: int) -> str:
        return f"{self.folder.name}/{self.search.arms[arm].name}"

    def make(self) -> None:
        """Make Optuna's studies with all their trials, or add those that are missing; under the study's lock."""
        import optuna

        directions = list(self.search.tuner.directions)
        for i, arm in enumerate(self.search.arms):
            study = optuna.create_study(
                storage=self.storage, study_name=self.study_name(i), directions=directions, load_if_exists=True
            )
            study.set_metric_names(list(self.search.tuner.metrics))
            have = len(study.get_trials(deepcopy=False))
            for number, point in enumerate(self.points(arm)[have:], have):
                study.enqueue_trial(point, user_attrs={"arm": arm.name, "slot": str(Slot(i, number))})

    def points(self, arm: Arm) -> list[dict[str, Any]]:
        """`points_of`, and the points by which the protocol extended a grid: those at the end, so that numbers stay."""
        protocol = self.search.protocol
        grid = points_of(self.search, arm)
        if protocol is None:
            return grid
        names = {one.key: one.name for one in self.search.space}
        wider = verdicts(self.folder).get(arm.name, Verdict()).values
        return grid + [{names[protocol.axis]: v, names["seed"]: seed} for v in wider for seed in protocol.tuning_seeds]

    def slots(self) -> list[Slot]:
        """Every trial, the arms by turns: those of one arm that begin together know nothing of each other."""
        numbers = [range(len(self.points(arm))) for arm in self.search.arms]
        return [
            Slot(i, k)
            for k in range(max(map(len, numbers), default=0))
            for i, own in enumerate(numbers)
            if k < len(own)
        ]

    def study(self, slot: Slot) -> "Study":
        """Optuna's study as a trial sees it: its sampler's seed is the trial's own, since two samplers of one seed
        propose the same."""
        import optuna

        words = json.dumps([self.search.tuner.seed, self.search.arms[slot.arm].name, slot.number])
        seed = zlib.crc32(words.encode())
        return optuna.load_study(
            study_name=self.study_name(slot.arm),
            storage=self.storage,
            sampler=SAMPLERS[self.search.tuner.sampler](seed),
            pruner=pruner(self.search, slot),
        )

    def id_of(self, slot: Slot) -> int:
        study = self.storage.get_study_id_from_name(self.study_name(slot.arm))
        return self.storage.get_trial_id_from_study_id_trial_number(study, slot.number)


def points_of(search: Search, arm: Arm) -> list[dict[str, Any]]:
    """What is fixed of each trial before it is asked for: all of it in a grid, otherwise nothing."""
    if search.tuner.sampler != "grid":
        return [{} for _ in range(search.tuner.trials or 0)]
    space = search.by_name
    return [
        {**variant.choices, **point}
        for variant in arm.variants
        for point in combinations([space[name] for name in variant.names])
    ]


def _open(folder: StudyFolder, tuner: Optuna) -> "BaseStorage":
    import optuna

    url = tuner.url()
    if url is None:
        _mend(folder.journal)
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        return JournalStorage(JournalFileBackend(str(folder.journal)))
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # of SQLAlchemy, of a driver that is not there, of a server that is not there
        said = str(error).strip().splitlines()
        where = tuner.storage if tuner.storage and tuner.storage.startswith("env:") else url
        legal = f"a database that answers ({type(error).__name__}: {said[0] if said else ''})"
        raise BadInput("tuner.storage", where, legal) from error


def _mend(path: Path) -> None:
    """Cut off a last line that a full disk or a kill left half: it reads, and the next append would break the file."""
    from optuna.storages.journal import JournalFileSymlinkLock

    # A look without the lock: a line that another process is just writing looks half, and is whole under the lock.
    if not path.exists() or _is_whole(path):
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LONGEST))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
    finally:
        lock.release()


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def _tpe(seed: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    # group: a conditional space is searched by the parts that belong together.
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=5)


def _gp(seed: int) -> "BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=5, warn_independent_sampling=False)


def _cmaes(seed: int) -> "BaseSampler":
    from optuna.samplers import CmaEsSampler

    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


SAMPLERS = {"tpe": _tpe, "gp": _gp, "cmaes": _cmaes, "random": _random, "grid": _random}
"""A grid's trials come with their parameters, so its sampler is asked for nothing."""


def pruner(search: Search, slot: Slot) -> "BasePruner":
    """Ends a trial by its intermediate evaluations; its unit of resource is a step."""
    from optuna import pruners

    tuner, train = search.tuner, search.arms[slot.arm].variants[0].tree
    every, steps = train["eval"]["every"] or 1, train["train"]["max_steps"]
    first = max(every, math.ceil(tuner.grace * steps))
    match tuner.pruner:
        case "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=tuner.reduction)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=tuner.reduction)
        case "median":
            return pruners.MedianPruner(n_startup_trials=tuner.startup, n_warmup_steps=first)
        case "wilcoxon":
            return pruners.WilcoxonPruner(n_startup_steps=tuner.startup)
    return pruners.NopPruner()


def require_pruning_possible(search: Search) -> None:
    """Refuse a pruner that would never be asked: there is no evaluation between."""
    if search.tuner.pruner == "none":
        return
    for arm in search.arms:
        for variant in arm.variants:
            every, steps = variant.tree["eval"]["every"], variant.tree["train"]["max_steps"]
            legal = f"a number of steps below {steps}: tuner.pruner={search.tuner.pruner} judges by evaluations between"
            check(0 < every < steps, "eval.every", every, legal)
