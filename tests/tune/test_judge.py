"""Who is ended early, and what the fair protocol makes of it: no matter in which order trials come."""

import math
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner

from ablora.store import lines
from ablora.store.run_folder import RunFolder
from ablora.tune.fair import decided
from ablora.tune.frozen import Arm, Search, Variant
from ablora.tune.settings import Fair, Optuna
from ablora.tune.storage import Slot, pruner
from ablora.tune.verdict import Verdict
from ablora.tune.worker import Judge


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2)])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_of_a_pack_the_best_is_judged_first(tmp_path, order, direction):
    """Whatever the order of its runs: four of them and a reduction of four, so that one goes on from the rung."""
    study = optuna.create_study(direction=direction, pruner=SuccessiveHalvingPruner(min_resource=4, reduction_factor=4))
    asked, sign = [], 1 if direction == "minimize" else -1
    for loss in order:
        run = RunFolder(tmp_path / str(loss))
        run.path.mkdir()
        record = {"kind": "eval", "task": "loss", "split": "validation", "metrics": {"answer_loss_nats": sign * loss}}
        lines.append(run.metrics, [{**record, "step": 4}])
        train = SimpleNamespace(max_steps=12)
        asked.append(SimpleNamespace(run=run, spec=SimpleNamespace(train=train), trial=study.ask()))
    search = SimpleNamespace(tuner=Optuna(pruner="asha", directions=(direction,)))
    judge = Judge(cast(Any, SimpleNamespace(search=search)), cast(Any, asked))
    ended = {"2", "3", "4"}
    assert judge([one.run for one in asked]) == ended
    assert judge.stopped == dict.fromkeys(ended, 4)


@pytest.mark.parametrize(("grace", "first"), [(0.0, 4), (0.25, 8), (0.3, 10)])
def test_no_trial_ends_before_its_grace(grace, first):
    tree = {"eval": {"every": 4}, "train": {"max_steps": 32}}
    arm = Arm({"method": "lora"}, (Variant({}, (), tree, {}),))
    for kind, name in (("asha", "_min_resource"), ("hyperband", "_min_resource"), ("median", "_n_warmup_steps")):
        made = pruner(Search(Optuna(pruner=kind, grace=grace), (), (arm,)), Slot(0, 0))
        assert getattr(made, name) == first


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({1.0: [3, 3], 2.0: [1], 4.0: [2, 2], 8.0: []}, 2.0),
        ({1.0: [3, 3], 2.0: [1, math.inf], 4.0: [2, 2], 8.0: [4]}, 4.0),
        ({1.0: [], 2.0: [math.inf], 4.0: [9], 8.0: [math.inf, math.inf]}, 4.0),
        ({1.0: [], 2.0: [math.inf], 4.0: [], 8.0: [math.inf, math.inf]}, None),
        (None, None),
    ],
)
def test_a_pruned_trial_says_nothing_and_a_diverged_one_all(found, best):
    """A rate of which one seed was pruned and the other is best wins over one that was lucky enough to come first."""
    assert decided(Verdict(), found, Fair(values=(1.0, 2.0, 4.0, 8.0), factor=2.0)).best == best
