"""Replays of the fair protocol on curves whose best rate, winner and cost are known."""

import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("optuna", reason="the replays ask Optuna's pruners: pip install 'ablora[tune]'")
import search

from ablora.tune.settings import Fair

RATES = (1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 1e-1, 3.16228e-1, 1.0)
STEPS = (4, 8, 12, 16)


def grid(bests, noise=0.0, seeds=range(5)) -> search.Grid:
    """Methods whose loss is a parabola in the rate's logarithm, its least value at a rate of the grid."""
    runs = {}
    for level, (method, best) in enumerate(bests.items()):
        for lr in RATES:
            for seed in seeds:
                final = 1 + level / 4 + (math.log10(lr) - math.log10(best)) ** 2 + noise * (seed - 2) * (1 + level)
                curve = (*(final + 1 / step for step in STEPS[:-1]), final)
                tokens = tuple(100 * step for step in STEPS)
                runs[method, lr, seed] = search.Run("made", method, lr, seed, STEPS, curve, tokens, final)
    return search.Grid(runs)


@pytest.fixture
def protocol():
    return Fair(values=RATES[2:-2], tuning_seeds=(0,), seeds=(1, 2, 3), factor=10**0.5, pruner="none")


def test_without_pruning_each_rate_of_the_common_grid_is_trained_once(protocol):
    found = search.tune(grid({"lora": 1e-2}), "lora", protocol, together=True)
    assert found == search.Tuned(1e-2, False, 5 * 1600)


@pytest.mark.parametrize("best", [RATES[0], RATES[-1]])
def test_a_best_rate_on_the_border_of_the_curves_is_an_edge_after_two_extensions(protocol, best):
    found = search.tune(grid({"lora": best}), "lora", protocol, together=True)
    assert found.edge
    assert found.tokens == 7 * 1600


@pytest.mark.parametrize("together", [True, False])
def test_pruning_trains_fewer_tokens_and_finds_the_same(protocol, together):
    pruned = search.tune(grid({"lora": 1e-2}), "lora", replace(protocol, pruner="asha"), together)
    assert pruned.best == 1e-2
    assert pruned.tokens < 5 * 1600


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("seeds", [1, 2])
def test_on_the_committed_curves_the_default_meets_its_goals_in_any_order_of_trials(together, seeds):
    default = Fair()
    of = search.grids(json.loads(search.CURVES.read_text()))
    found = search.replayed(of, default.pruner, default.grace, together, seeds)
    assert found.regret <= 0.25
    assert found.regret_worst <= 1.5
    assert found.tokens_share <= 0.35
    assert found.winners >= 0.3
    assert found.winners_found is not None
    assert found.winners_found >= 0.95


def test_regret_is_in_standard_deviations_over_seeds():
    own = grid({"lora": 1e-3}, noise=0.1)
    sd = 0.1 * math.sqrt(2.5)
    assert own.sd == pytest.approx(sd)
    assert search.regret(own, "lora", 1e-3) == 0
    assert search.regret(own, "lora", 1e-2) == pytest.approx(1 / sd, rel=1e-4)


def test_a_winner_needs_a_gap_that_a_test_would_find():
    assert grid({"lora": 1e-3, "pissa": 1e-2}, noise=0.001).winner(("lora", "pissa"), 3) == "lora"
    assert grid({"lora": 1e-3, "pissa": 1e-2}, noise=1.0).winner(("lora", "pissa"), 3) is None


def test_all_replays_of_clear_curves_find_the_winner_at_the_cost_that_is_counted():
    found = search.replayed({"made": grid({"lora": 3.16228e-3, "pissa": 1e-2}, noise=0.001)}, "none", 0.0, True, 1)
    assert found.replays == 5 * 4
    assert (found.regret, found.winners, found.winners_found, found.edges) == (0, 1, 1, 0)
    assert found.tokens_share == pytest.approx((5 + 3) / 45)


def test_the_committed_curves_are_a_whole_grid():
    for own in search.grids(json.loads(search.CURVES.read_text())).values():
        assert len(own.methods) >= 4
        assert len(own.runs) == len(own.methods) * len(own.rates) * len(own.seeds)
        assert (len(own.rates), len(own.seeds)) == (9, 5)
