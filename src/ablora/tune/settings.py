"""How a search is made: a file of conf/tuner. None of it is part of what a run is."""

import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ablora.spec import BadInput, check

Direction = Literal["minimize", "maximize"]
Sampler = Literal["tpe", "gp", "cmaes", "random", "grid"]
Pruner = Literal["none", "asha", "hyperband", "median", "wilcoxon"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optuna:
    """Trials per arm, who proposes them, and who ends them early."""

    trials: int | None = 20
    """Of each arm, in all: pruned and failed ones count, going on adds none. Null with sampler=grid: every point."""
    metrics: tuple[str, ...] = ("validation_answer_loss_nats",)
    """Of result.json; several make a Pareto front, and Optuna prunes none of its trials then."""
    directions: tuple[Direction, ...] = ("minimize",)
    """Of each metric: minimize or maximize."""
    sampler: Sampler = "tpe"
    pruner: Pruner = "none"
    reduction: int = 3
    """Of asha and hyperband: one of so many goes on from a rung."""
    grace: float = 0.25
    """Of asha, hyperband and median: a share of a run's steps in which no trial ends. What leads before the rate has
    warmed up is often what diverges later."""
    at_once: int | None = 4
    """Trials of one arm that are proposed together at most, as one pack: those of a pack know nothing of each other."""
    startup: int = 4
    """Of median and wilcoxon: trials that end before the first one is pruned."""
    seed: int = 0
    storage: str | None = None
    """Null: a journal in the study's folder. A URL of a database, or env:NAME for one that stands in the environment,
    where a password belongs."""

    def __post_init__(self) -> None:
        grid = self.sampler == "grid"
        check(self.trials is not None or grid, "trials", self.trials, "an integer of at least 1; null for a grid only")
        check(self.trials is None or self.trials >= 1, "trials", self.trials, "an integer of at least 1")
        check(not (grid and self.trials), "trials", self.trials, "null with sampler=grid: every point is one trial")
        check(len(set(self.metrics)) == len(self.metrics) > 0, "metrics", self.metrics, "metrics of result.json")
        legal = "minimize or maximize for each of tuner.metrics"
        both = len(self.directions) == len(self.metrics) and set(self.directions) <= {"minimize", "maximize"}
        check(both, "directions", self.directions, legal)
        legal = "none with several objectives: Optuna prunes studies of one objective only"
        check(self.pruner == "none" or len(self.metrics) == 1, "pruner", self.pruner, legal)
        check(self.reduction >= 2, "reduction", self.reduction, "an integer of at least 2")
        check(0 <= self.grace < 1, "grace", self.grace, "a share of a run's steps, from 0 to below 1")
        check(self.at_once is None or self.at_once >= 1, "at_once", self.at_once, "null, or an integer of at least 1")
        check(self.startup >= 0, "startup", self.startup, "an integer of at least 0")
        if self.storage is not None and not self.storage.startswith("env:"):
            password = urlsplit(self.storage).password is not None
            legal = "a URL without a password, or env:NAME with the URL in that variable: secrets are written nowhere"
            check(not password, "storage", "***", legal)

    def url(self) -> str | None:
        """Where the trials are; None for the journal in the study's folder."""
        if self.storage is None or not self.storage.startswith("env:"):
            return self.storage
        name = self.storage.removeprefix("env:")
        if name not in os.environ:
            raise BadInput("tuner.storage", self.storage, f"a variable that is set: export {name}=postgresql://...")
        return os.environ[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fair:
    """Every method at its own best rate: tuned with equal trials and tokens on the validation split, then confirmed
    with fresh seeds, which alone are reported."""

    axis: str = "train.lr"
    values: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """The common grid, each about `factor` times the one before."""
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3)
    """Fresh ones, of the confirming runs."""
    metric: str = "validation_answer_loss_nats"
    """Of result.json; the least mean over the tuning seeds is best."""
    factor: float = 3.0
    extensions: int = 2
    """A best value on the border moves it by `factor`, so often; one that is still there marks the method as edge."""
    pruner: Pruner = "asha"
    reduction: int = 3
    grace: float = 0.25

    def __post_init__(self) -> None:
        check(len(self.values) >= 2, "values", self.values, "at least two values")
        check(list(self.values) == sorted(set(self.values)), "values", self.values, "values that rise, none twice")
        check(self.values[0] > 0, "values", self.values, "numbers above 0")
        for name in ("tuning_seeds", "seeds"):
            own = getattr(self, name)
            check(len(set(own)) == len(own) > 0, name, own, "at least one seed, none of them twice")
        fresh = not set(self.seeds) & set(self.tuning_seeds)
        check(fresh, "seeds", self.seeds, f"seeds that tuning does not use {self.tuning_seeds}")
        on_validation = self.metric.startswith("validation_")
        check(on_validation, "metric", self.metric, "a metric of the validation split: the report uses the test split")
        check(self.factor > 1, "factor", self.factor, "a number above 1")
        check(0 <= self.grace < 1, "grace", self.grace, "a share of a run's steps, from 0 to below 1")
        check(self.extensions >= 0, "extensions", self.extensions, "an integer of at least 0")

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the greatest value that there can be when every extension is made."""
        most = self.factor ** (self.extensions + 1)
        return self.values[0] / most, self.values[-1] * most

    def tuner(self) -> Optuna:
        """The search that tunes: every value with every tuning seed."""
        return Optuna(trials=None, metrics=(self.metric,), sampler="grid", pruner=self.pruner,
                      reduction=self.reduction, grace=self.grace, at_once=None)  # fmt: skip
