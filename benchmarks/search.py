"""What the fair protocol misses, and what it saves: replays of it on the curves of a whole grid.

    ablora run -m +sweeps=search_curves study=curves                   # 630 runs on the embedded base
    python benchmarks/search.py --read studies/curves                  # writes benchmarks/results/search_curves.json
    python benchmarks/search.py [--curves FILE]                        # replays what is committed

The grid has every method at nine rates with five seeds on two data sets. A replay tunes each method as `protocol=fair`
does, with its own pruner and its own decisions, on a common grid of the five inner rates, which may be extended twice
on either side: what it would train it reads from the curves. It then confirms with seeds that tuning did not use.
Trials of a method go side by side, as in one pack (in use more than `pack` of them are several), or one after another
in an order that is drawn, as tasks of a cluster may. There is a replay for every choice of tuning seeds, of confirming
seeds among the others, and of two methods that are compared.

    regret      of one method: mean validation loss over all five seeds at the rate that was chosen, less that at the
                grid's best rate, over the standard deviation over seeds (pooled over the methods of a data set)
    tokens      answer tokens that the replay trains on, over those of the whole grid for the same methods
    winner      the grid has one where the mean test losses of the two, each at its best rate, differ by more than
                what a paired t test with as many seeds as the replay confirms finds with a power of 80 %; it is found
                where the replay's first is the same. A method whose best rate stays on the border is not ranked.

A table has one row for each way of tuning. The last line is one JSON object, of the protocol's default way.
"""

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from ablora.tune.fair import decided
from ablora.tune.frozen import Arm, Search, Variant
from ablora.tune.settings import Fair, Pruner
from ablora.tune.storage import Slot, pruner
from ablora.tune.verdict import Verdict
from ablora_analysis.stats.design import minimum_detectable_difference

CURVES = Path(__file__).parent / "results" / "search_curves.json"
METRIC = "answer_loss_nats"
CONFIRMING = 3
EXTENSIONS = Fair().extensions
"""As often a border extends the common grid; the curves have so many rates on either side of it."""
WAYS: tuple[tuple[Pruner, float, bool, int], ...] = tuple(
    (name, grace, together, seeds)
    for name, grace in (("asha", 0.25), ("asha", 0.0), ("median", 0.25), ("none", 0.0))
    for together in ((True,) if name == "none" else (True, False))
    for seeds in (1, 2)
)
"""Pruner, its share of steps in which none ends, whether trials go side by side, and number of tuning seeds; the first
is the default."""


class Run(NamedTuple):
    """One run of the grid: its evaluations between and at the end, as far as it came."""

    dataset: str
    method: str
    lr: float
    seed: int
    steps: tuple[int, ...]
    validation: tuple[float, ...]
    tokens: tuple[int, ...]
    test: float | None
    """After the last step; None if it diverged."""


@dataclass(frozen=True)
class Grid:
    """All runs of one data set."""

    runs: Mapping[tuple[str, float, int], Run]

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _, _ in self.runs))

    @cached_property
    def rates(self) -> list[float]:
        return sorted({lr for _, lr, _ in self.runs})

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({seed for _, _, seed in self.runs})

    def losses(self, method: str, lr: float) -> list[float]:
        """Validation loss at the end, by seed; infinite where a run diverged."""
        own = [self.runs[method, lr, seed] for seed in self.seeds]
        return [run.validation[-1] if run.test is not None else float("inf") for run in own]

    def tests(self, method: str, lr: float) -> list[float]:
        own = [self.runs[method, lr, seed].test for seed in self.seeds]
        return [float("inf") if one is None else one for one in own]

    def best(self, method: str) -> float:
        return min(self.rates, key=lambda lr: statistics.fmean(self.losses(method, lr)))

    @cached_property
    def sd(self) -> float:
        """Over seeds, at each method's best rate, pooled."""
        own = [statistics.variance(self.losses(method, self.best(method))) for method in self.methods]
        return statistics.fmean(own) ** 0.5

    def tokens(self, methods: Sequence[str]) -> int:
        return sum(run.tokens[-1] for run in self.runs.values() if run.method in methods)

    def winner(self, methods: Sequence[str], seeds: int) -> str | None:
        """The first of these methods, if a test with so many seeds would tell it from the second."""
        tests = {method: self.tests(method, self.best(method)) for method in methods}
        first, second = sorted(tests, key=lambda method: statistics.fmean(tests[method]))[:2]
        gaps = [b - a for a, b in zip(tests[first], tests[second])]
        least = minimum_detectable_difference(statistics.stdev(gaps), seeds)
        return first if statistics.fmean(gaps) > least else None


class Tuned(NamedTuple):
    """What tuning one method came to."""

    best: float
    edge: bool
    tokens: int


def tune(grid: Grid, method: str, protocol: Fair, together: bool) -> Tuned:
    """The protocol's rounds for one method: the common grid, then each extension."""
    verdict, asked, tokens = Verdict(), list(protocol.values), 0
    found: dict[float, list[float]] = {}
    search = Replay(grid, method, protocol, together)
    while asked:
        for lr, values, trained in search.trials(asked):
            found.setdefault(lr, []).extend(values)
            tokens += trained
        before = verdict
        verdict = decided(verdict, found, protocol)
        asked = [lr for lr in verdict.values if lr not in before.values]
        if not set(asked) <= set(grid.rates):  # beyond the curves: what it would find there is not known
            return Tuned(asked[0] if verdict.best is None else verdict.best, True, tokens)
    assert verdict.best is not None
    return Tuned(verdict.best, verdict.edge, tokens)


class Replay:
    """Trials of one method in Optuna's memory, their evaluations read from the curves."""

    def __init__(self, grid: Grid, method: str, protocol: Fair, together: bool):
        import optuna

        any_run = next(iter(grid.runs.values()))
        every, steps = any_run.steps[0], any_run.steps[-1]
        tree = {"eval": {"every": every}, "train": {"max_steps": steps}}
        arm = Arm({"method": method}, (Variant({}, (), tree, {}),))
        self.study = optuna.create_study(pruner=pruner(Search(protocol.tuner(), (), (arm,)), Slot(0, 0)))
        self.grid, self.method, self.protocol, self.together = grid, method, protocol, together
        self.arrival = random.Random(f"{method} {protocol.tuning_seeds}")

    def trials(self, rates: Sequence[float]) -> Iterator[tuple[float, list[float], int]]:
        """Rate, final loss unless it was pruned (infinite if it diverged), and tokens, of each trial of a round."""
        import optuna

        points = [(lr, seed) for lr in rates for seed in self.protocol.tuning_seeds]
        for lr, seed in points:
            self.study.enqueue_trial({"lr": lr, "seed": seed})
        runs = []
        for _ in points:
            trial = self.study.ask()
            lr, seed = trial.suggest_float("lr", 1e-9, 1e9, log=True), trial.suggest_int("seed", 0, 1 << 30)
            runs.append((trial, self.grid.runs[self.method, lr, seed]))
        for pack in [runs] if self.together else [[one] for one in self.arrival.sample(runs, len(runs))]:
            stopped = pruned(pack)
            for trial, run in pack:
                if trial.number in stopped:
                    self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    yield run.lr, [], run.tokens[stopped[trial.number]]
                elif run.test is None:
                    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    yield run.lr, [math.inf], run.tokens[-1]
                else:
                    self.study.tell(trial, run.validation[-1])
                    yield run.lr, [run.validation[-1]], run.tokens[-1]


def pruned(pack: Sequence[tuple[Any, Run]]) -> dict[int, int]:
    """The trials of a pack that end early, by number, and at which of their evaluations: all are told, then the best is
    judged first, as `ablora.tune.worker.Judge` does."""
    stopped: dict[int, int] = {}
    for i, step in enumerate(max((run.steps for _, run in pack), key=len)[:-1]):
        alive = [(trial, run) for trial, run in pack if trial.number not in stopped and i < len(run.steps)]
        for trial, run in alive:
            trial.report(run.validation[i], step)
        best_first = sorted(alive, key=lambda one: one[1].validation[i])
        stopped |= {trial.number: i for trial, _ in best_first if trial.should_prune()}
    return stopped


class Found(NamedTuple):
    """What all replays of one way of tuning say."""

    regret: float
    regret_worst: float
    tokens_share: float
    edges: float
    """Share of the tunings that ended on a border."""
    winners: float
    """Share of the replays where the grid has a winner."""
    winners_found: float | None
    """Share of those in which the replay finds it; None where there is none to find."""
    replays: int


def replayed(grids: Mapping[str, Grid], name: Pruner, grace: float, together: bool, tuning: int) -> Found:
    """Every replay of one way of tuning."""
    regrets, shares, edges, hits, replays = [], [], [], [], 0
    for grid in grids.values():
        for seeds in combinations(grid.seeds, tuning):
            inner = tuple(grid.rates[EXTENSIONS:-EXTENSIONS])
            fresh = [seed for seed in grid.seeds if seed not in seeds]
            protocol = Fair(
                values=inner, tuning_seeds=seeds, seeds=tuple(fresh), factor=10**0.5, pruner=name, grace=grace
            )
            tuned = {method: tune(grid, method, protocol, together) for method in grid.methods}
            regrets += [regret(grid, method, own.best) for method, own in tuned.items()]
            edges += [own.edge for own in tuned.values()]
            for confirming in combinations(fresh, CONFIRMING):
                for methods in combinations(grid.methods, 2):
                    replays += 1
                    shares.append(spent(grid, methods, tuned, confirming) / grid.tokens(methods))
                    winner = grid.winner(methods, CONFIRMING)
                    if winner is not None:
                        hits.append(winner == first(grid, methods, tuned, confirming))
    found = statistics.fmean(hits) if hits else None
    return Found(statistics.fmean(regrets), max(regrets), max(shares), statistics.fmean(edges),
                 len(hits) / replays, found, replays)  # fmt: skip


def regret(grid: Grid, method: str, lr: float) -> float:
    """In standard deviations over seeds; of a rate beyond the curves, that of the border next to it."""
    lr = min(max(lr, grid.rates[0]), grid.rates[-1])
    at = statistics.fmean(grid.losses(method, lr))
    return (at - statistics.fmean(grid.losses(method, grid.best(method)))) / grid.sd


def spent(grid: Grid, methods: Sequence[str], tuned: Mapping[str, Tuned], confirming: Sequence[int]) -> int:
    out = 0
    for method in methods:
        out += tuned[method].tokens
        if not tuned[method].edge:
            out += sum(grid.runs[method, tuned[method].best, seed].tokens[-1] for seed in confirming)
    return out


def first(grid: Grid, methods: Sequence[str], tuned: Mapping[str, Tuned], confirming: Sequence[int]) -> str | None:
    """The method with the least mean test loss over the confirming seeds, of those that are ranked."""
    means = {}
    for method in methods:
        if not tuned[method].edge:
            tests = dict(zip(grid.seeds, grid.tests(method, tuned[method].best)))
            means[method] = statistics.fmean(tests[seed] for seed in confirming)
    return min(means, key=means.__getitem__) if means else None


def grids(record: Mapping[str, Any]) -> dict[str, Grid]:
    """The committed curves, by data set."""
    out: dict[str, dict[tuple[str, float, int], Run]] = {}
    for one in record["runs"]:
        run = Run(**{**one, **{name: tuple(one[name]) for name in ("steps", "validation", "tokens")}})
        out.setdefault(run.dataset, {})[run.method, run.lr, run.seed] = run
    return {name: Grid(runs) for name, runs in out.items()}


def curves(study: Path) -> dict[str, Any]:
    """The curves of a finished study, from its run folders."""
    from methods import machine

    from ablora.store import lines
    from ablora.store.roots import Roots
    from ablora.store.run_folder import folder_of
    from ablora.study.manifest import StudyFolder

    roots = Roots(study.parents[1] / "runs", study.parent, study.parents[1] / "cache")
    runs = []
    for row in StudyFolder(study).rows():
        folder = folder_of(roots, row.id)
        labels = row.labels
        done = folder.result.exists()
        if not done and not (folder.failure.exists() and folder.read_failure()["class"] == "diverged"):
            sys.exit(f"{row.id} is not over: ablora status {study.name}")
        records = list(lines.read(folder.metrics))
        tokens = {one["step"]: one["answer_tokens"] for one in records if one["kind"] == "train"}
        losses: dict[str, dict[int, float]] = {"validation": {}, "test": {}}
        for one in records:
            if one["kind"] == "eval":
                losses[one["split"]][one["step"]] = one["metrics"][METRIC]
        steps = sorted(losses["validation"])
        runs.append(Run(labels["dataset"], labels["method"], labels["train.lr"], labels["seed"], tuple(steps),
                        tuple(round(losses["validation"][s], 5) for s in steps), tuple(tokens[s] for s in steps),
                        round(losses["test"][steps[-1]], 5) if done else None)._asdict())  # fmt: skip
    return {"command": "ablora run -m +sweeps=search_curves study=curves", **machine(1), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, metavar="STUDY", help="a finished study's folder; writes --curves")
    parser.add_argument("--curves", type=Path, default=CURVES)
    asked = parser.parse_args()
    if asked.read:
        asked.curves.write_text(json.dumps(curves(asked.read.resolve())).replace('{"dataset"', '\n{"dataset"') + "\n")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    of = grids(json.loads(asked.curves.read_text()))
    for name, grid in of.items():
        for method in grid.methods:
            means = " ".join(f"{statistics.fmean(grid.losses(method, lr)):7.3f}" for lr in grid.rates)
            print(f"{name:14} {method:8} {means}   best {grid.best(method):g}")
        print(f"{name:14} standard deviation over seeds {grid.sd:.4f}")
    print(f"{'pruner':8} {'grace':>5} {'pack':>5} {'seeds':>5} {'regret':>7} {'worst':>7} {'tokens':>7} "
          f"{'edges':>6} {'winners':>8} {'found':>6}")  # fmt: skip
    found = {way: replayed(of, *way) for way in WAYS}
    for (name, grace, together, tuning), one in found.items():
        print(f"{name:8} {grace:5} {'yes' if together else 'no':>5} {tuning:5} {one.regret:7.3f} "
              f"{one.regret_worst:7.2f} {one.tokens_share:7.3f} {one.edges:6.2f} {one.winners:8.2f} "
              f"{one.winners_found if one.winners_found is not None else '-':>6}")  # fmt: skip
    name, grace, _, tuning = WAYS[0]
    figures = {key: value and round(value, 4) for key, value in found[WAYS[0]]._asdict().items()}
    print(
        json.dumps({"pruner": name, "grace": grace, "tuning_seeds": tuning, "confirming_seeds": CONFIRMING, **figures})
    )


if __name__ == "__main__":
    main()
