"""What `ablora plan` tells of a study's seeds, from labels alone and from runs that are done."""

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from synthetic import Made, stale, write_study

from ablora.store import lines as store_lines
from ablora.store.roots import Roots
from ablora_analysis import stats
from ablora_analysis.before_launch import lines, sentence


def cells(methods: int, seeds: int, **labels: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"{m}-{s}-{labels}", "method": f"m{m}", "labels": {"method": f"m{m}", "seed": s} | labels, "why": "grid"}
        for m in range(methods)
        for s in range(seeds)
    ]


def told(roots: Roots, planned: list[dict[str, Any]], study: str = "new") -> list[str]:
    return list(lines(roots, study, planned, stale))


def test_three_seeds_and_three_comparisons(roots: Roots) -> None:
    assert told(roots, cells(4, 3)) == [
        "statistics: 3 seeds, 3 comparisons: smallest detectable difference 5.7 sd of the per-seed differences "
        "(80 % power, alpha 0.05/3); a permutation test could give p >= 0.25"
    ]


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 1), (3, 3), (5, 2), (10, 7)])
def test_the_detectable_difference_has_its_power_at_holms_first_step(seeds: int, comparisons: int) -> None:
    found = stats.design_power(seeds, comparisons)
    draws = np.random.default_rng(0).normal(found.detectable_sd, 1, (20_000, seeds))
    share = (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / comparisons).mean()
    assert share == pytest.approx(0.8, abs=0.012)
    assert found.permutation == (2 ** (1 - seeds) < 0.05 / comparisons)


def test_fewer_than_three_seeds_are_told_what_they_will_not_say(roots: Roots) -> None:
    (one,), (two,) = told(roots, cells(4, 1)), told(roots, cells(4, 2))
    assert "will not say what another seed would give" in one
    assert "no test; it will not say which method is best" in two
    assert math.isinf(stats.design_power(2, 1).detectable_sd)
    assert "detectable" not in sentence(stats.design_power(2, 1))


def test_seeds_are_counted_per_data_set_and_setting(roots: Roots) -> None:
    planned = [*cells(3, 3, dataset="gsm8k", rank=4), *cells(3, 3, dataset="gsm8k", rank=8)]
    assert told(roots, planned)[0].startswith("statistics (each of 2 tables): 3 seeds, 2 comparisons: ")
    more = told(roots, [*planned, *cells(2, 5, dataset="svamp", rank=8)])
    assert [line.split(":")[0] for line in more] == ["statistics (gsm8k, rank=4; gsm8k, rank=8)",
                                                      "statistics (svamp, rank=8)"]  # fmt: skip
    assert "5 seeds, 1 comparison:" in more[1]


def test_seeds_that_are_not_shared_pair_nothing(roots: Roots) -> None:
    first, second = cells(1, 3), [c | {"method": "b", "id": c["id"] + "b"} for c in cells(1, 5)]
    assert "3 seeds, 1 comparison" in told(roots, [*first, *second])[0]
    third = [c | {"method": "c", "id": c["id"] + "c"} for c in cells(1, 4)]
    assert "3 seeds, 2 comparisons" in told(roots, [*first, *second, *third])[0], "the fewest that any two share"
    apart = [c | {"labels": c["labels"] | {"seed": c["labels"]["seed"] + 9}} for c in second]
    assert "share no seed" in told(roots, [*first, *apart])[0]
    assert told(roots, first) == ["statistics: 3 seeds of one method: nothing to compare it with"]


def test_where_a_study_confirms_only_fresh_seeds_count(roots: Roots) -> None:
    tuning = [c | {"why": "tune", "labels": c["labels"] | {"seed": 9}} for c in cells(3, 1, **{"train.lr": 0.1})]
    fresh = [c | {"why": "confirm", "id": c["id"] + "c"} for c in cells(3, 4, **{"train.lr": 0.1})]
    assert "4 seeds, 2 comparisons" in told(roots, [*tuning, *fresh])[0]


def test_runs_that_are_done_give_the_metrics_unit(roots: Roots) -> None:
    write_study(roots, "s", [Made(method=m, seed=s) for m in ("lora", "pissa", "milora") for s in range(3)])
    planned = list(store_lines.read(roots.studies / "s" / "manifest.jsonl"))
    first, loss, *_ = told(roots, planned, "s")
    assert "3 seeds, 2 comparisons" in first
    found = re.fullmatch(r"  arithmetic: ([\d.e-]+) answer_loss_nats, by the spread of 3 finished seeds", loss)
    assert found is not None
    assert 0.01 < float(found[1]) < 1
    more = [
        c | {"id": f"{i}", "labels": c["labels"] | {"seed": c["labels"]["seed"] + 3}} for i, c in enumerate(planned)
    ]
    grown = told(roots, [*planned, *more], "s")
    factor = stats.design_power(6, 2).detectable_sd / stats.design_power(3, 2).detectable_sd
    assert float(grown[1].split()[1]) == pytest.approx(factor * float(found[1]), rel=0.05)


def test_a_study_without_a_finished_run_gives_no_unit(roots: Roots) -> None:
    write_study(roots, "s", [Made(method=m, seed=s, state="planned") for m in ("lora", "pissa") for s in range(3)])
    assert len(told(roots, list(store_lines.read(roots.studies / "s" / "manifest.jsonl")), "s")) == 1
