import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import Made, id_of, stale, write_study

from ablora.store.roots import Roots
from ablora_analysis import table
from ablora_analysis.figures import arms, lr_curves, result_table, style, training_curves

LRS = (5e-4, 1e-3, 2e-3)


def prepared_of(roots: Roots, runs: list[Made]) -> pd.DataFrame:
    write_study(roots, "s", runs)
    rows, _ = table.read_rows(roots, "s", stale)
    return arms.prepare(table.cells(roots, "s", rows))


def grid(*methods: str, lrs: tuple[float, ...] = LRS, seeds: int = 3, **fields: object) -> list[Made]:
    return [Made(method=m, lr=lr, seed=s, **fields) for m in methods for lr in lrs for s in range(seeds)]  # type: ignore[arg-type]


def test_the_best_rate_inside_the_range_is_chosen(roots: Roots) -> None:
    lora, pissa = arms.choose(prepared_of(roots, grid("lora", "pissa")))
    assert (lora.arm, lora.lr, lora.edge, lora.seeds, len(lora.ids)) == ("lora", 1e-3, False, (0, 1, 2), 3)
    assert (pissa.lr, pissa.edge, pissa.metric) == (5e-4, True, "answer_loss_nats")


def test_a_validation_metric_chooses_where_there_is_one(roots: Roots) -> None:
    prepared = prepared_of(roots, grid("lora"))
    prepared["validation_answer_loss_nats"] = -prepared["lr"]
    (choice,) = arms.choose(prepared)
    assert (choice.lr, choice.metric) == (2e-3, "validation_answer_loss_nats")
    assert "on a validation split" in arms.notes(prepared, [choice])[0]
    assert "validation_answer_loss_nats" not in result_table.shown_metrics(prepared)


def test_a_rate_where_a_seed_diverged_is_not_chosen(roots: Roots) -> None:
    runs = [replace(m, state="diverged") if (m.lr, m.seed) == (1e-3, 1) else m for m in grid("lora")]
    (choice,) = arms.choose(prepared_of(roots, runs))
    assert choice.lr != 1e-3
    assert choice.diverged_share == "1/9"


def test_left_out_runs_are_counted_by_reason(roots: Roots) -> None:
    states = ("done", "stale", "bug", "planned", "diverged")
    runs = [Made(seed=seed, state=state) for seed, state in enumerate(states)]
    prepared = prepared_of(roots, runs)
    out = arms.left_out(prepared)
    assert out == {"stale": [id_of(runs[1])], "failed (bug)": [id_of(runs[2])], "planned": [id_of(runs[3])]}
    assert "Left out: 1 failed (bug), 1 planned, 1 stale." in arms.notes(prepared, arms.choose(prepared))


def test_an_arm_without_a_finished_run_is_named(roots: Roots) -> None:
    lost = [Made(method="pissa", seed=s, state="diverged") for s in range(3)]
    prepared = prepared_of(roots, [Made(), Made(method="goat", state="planned"), *lost])
    found = arms.notes(prepared, arms.choose(prepared))
    assert "Without a finished run: goat, pissa (3/3 diverged)." in found


def test_methods_are_compared_at_equal_rank_and_axes_by_name(roots: Roots) -> None:
    ranks = [Made(method=m, rank=r, seed=s) for m in ("lora", "pissa") for r in (8, 32) for s in range(2)]
    full = [Made(method="full", rank=None, labels=(("rank", r),), seed=s) for r in (8, 32) for s in range(2)]
    choices = arms.choose(prepared_of(roots, ranks + full))
    assert arms.panels(choices) == [("rank=8", "arithmetic"), ("rank=32", "arithmetic")]
    assert [c.arm for c in choices if c.setting == "rank=32"] == ["lora", "pissa", "full"]


def test_swept_axes_of_one_method_are_its_arms(roots: Roots) -> None:
    values = {"ZeroB": "zero_b", "SvdMinor": "svd_minor"}
    runs = [Made(init=name, labels=(("method/init", value),)) for name, value in values.items()]
    choices = arms.choose(prepared_of(roots, runs))
    assert [c.arm for c in choices] == ["lora, init=zero_b", "lora, init=svd_minor"]
    looks = style.looks(c.arm for c in choices)
    assert looks["lora, init=svd_minor"] == style.KNOWN["milora"]


def test_looks_are_fixed_per_method_and_distinct() -> None:
    assert style.looks(["goat", "mine"])["goat"] == style.looks(["goat"])["goat"] == style.KNOWN["goat"]
    many = style.looks([*style.KNOWN, *(f"method_{i}" for i in range(20))])
    assert len(set(many.values())) == len(many)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("answer_loss_nats", True),
        ("exact_match", False),
        ("perplexity", True),
        ("forgetting_kl_nats", True),
        ("top1_agreement", False),
        ("text_loss_nats", True),
        ("routing_balance", True),
        ("routing_max_load", True),
    ],
)
def test_direction_and_words_of_a_metric(metric: str, lower: bool) -> None:
    assert style.lower_is_better(metric) is lower
    assert style.axis_title("forgetting_kl_nats") == "forgetting KL (nats per token)"
    assert style.axis_title("routing_seconds_s") == "routing seconds (s)"


def test_lr_curve_shows_divergence_and_never_averages_it(roots: Roots) -> None:
    runs = [replace(m, state="diverged") if (m.lr, m.seed) == (2e-3, 1) else m for m in grid("lora")]
    prepared = prepared_of(roots, runs)
    (curve,) = lr_curves.points(prepared, arms.choose(prepared), "answer_loss_nats")
    assert (curve.lrs, curve.diverged, curve.chosen) == (LRS, (0, 0, 1), 1e-3)
    assert [len(v) for v in curve.values] == [3, 3, 2]
    assert curve.mean[0] == pytest.approx(np.mean(curve.values[0]))
    assert math.isnan(curve.mean[2])


def test_training_curve_is_the_mean_and_span_of_smoothed_seeds(roots: Roots) -> None:
    prepared = prepared_of(roots, grid("lora", lrs=(1e-3,), steps=80))
    (choice,) = arms.choose(prepared)
    records = table.curves(roots, choice.ids)
    (curve,) = training_curves.points([choice], records, training_curves.TRAIN)
    assert (curve.steps, curve.seeds) == (tuple(range(1, 81)), 3)
    losses = records[records["metric"] == "loss_nats"].pivot(index="step", columns="id", values="value")
    smooth = losses.rolling(2, min_periods=1).mean()
    assert curve.mean == pytest.approx(smooth.mean(axis=1).tolist())
    assert curve.high == pytest.approx(smooth.max(axis=1).tolist())
    (last,) = training_curves.points([choice], records, training_curves.EVAL)
    assert last.steps == (0, 20, 40, 60, 80)


def test_training_curve_names_where_a_run_diverged(roots: Roots) -> None:
    runs = [Made(seed=0), Made(seed=1), Made(seed=2, state="diverged")]
    (choice,) = arms.choose(prepared_of(roots, runs))
    records = table.curves(roots, [*choice.ids, *choice.diverged])
    (curve,) = training_curves.points([choice], records, training_curves.TRAIN)
    assert (curve.seeds, curve.diverged_at) == (2, (13,))
    assert "×: 1 diverged, not in the mean." in training_curves.notes([curve])
