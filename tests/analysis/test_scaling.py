import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from synthetic import Made, write_study
from synthetic_scaling import METRIC, SHAPES, Trial, read_study, search, study_of
from test_figures_main import assert_readable

from ablora.method.scaling.constant import Constant
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora.tree import build
from ablora_analysis.figures import arms, scaling, scaling_runs, sheet

SCALINGS = Path(__file__).parents[2] / "conf/method/scaling"
GRID = [Trial(s=2.0**k, lr=lr, seed=seed, why="grid") for k in range(-2, 7) for lr in (5e-4, 1e-3) for seed in (0, 1)]


def draw(roots: Roots, trials: list[Trial]) -> dict[str, Path]:
    with sheet.rc():
        return {path.suffix: path for path in scaling.paint(study_of(roots, trials))}


@pytest.mark.parametrize("best_s", [1.0, 4.0, 11.0])
def test_a_planted_optimum_is_recovered(roots: Roots, best_s: float) -> None:
    (one,) = scaling.curves(study_of(roots, search(best_s)))
    assert abs(math.log2(one.best.middle / best_s)) < 1
    assert one.best.low < best_s < one.best.high
    assert (one.metric, one.tuned, one.edge, len(one.ids)) == (METRIC, ("train.lr",), False, 20)


def test_the_band_holds_the_curve_that_was_planted(roots: Roots) -> None:
    trials = search(4.0, seed=3, number=24)
    (one,) = scaling.curves(study_of(roots, trials))
    rates = [trial.lr for trial in trials]
    truth = [min(Trial(s=s, lr=lr).loss for lr in rates) for s in one.grid]
    inside = (np.array(one.low) <= truth) & (truth <= np.array(one.high))
    assert inside.mean() > 0.9
    assert max(np.array(one.high) - one.low) > 2 * min(
        np.array(one.high) - one.low
    )  # it is known best where tried most


def test_distance_and_price_of_a_formula(roots: Roots) -> None:
    (one,) = scaling.curves(study_of(roots, search(4.0, noise=0.0)))
    at = {theory.name: theory for theory in one.theories}
    assert {name: theory.s for name, theory in at.items()} == pytest.approx(
        {"16/r": 2.0, "16/√r": 16 / 8**0.5, "√(3n/r)": (3 * 128 / 8) ** 0.5, "1": 1.0}
    )
    for theory in one.theories:
        assert theory.octaves.middle == math.log2(theory.s) - math.log2(one.best.middle)
        assert theory.octaves.high == pytest.approx(math.log2(theory.s / one.best.low))
    assert at["1"].loss.low < 0.05 * 2**2 < at["1"].loss.high
    assert at["1"].loss.middle > at["16/√r"].loss.middle >= 0


def test_closed_forms_are_those_of_the_presets(roots: Roots) -> None:
    files = {"16/r": "alpha_over_r", "16/√r": "alpha_over_sqrt_r", "√(3n/r)": "goat", "1": "constant"}
    for name, formula in scaling_runs.FORMULAS.items():
        assert build(yaml.safe_load((SCALINGS / f"{files[name]}.yaml").read_text())) == formula


def test_r_is_the_rank_of_one_expert_and_modules_may_differ_in_s(roots: Roots) -> None:
    study = study_of(roots, search(6.0, method="goat", experts=4))
    (one,) = scaling.curves(study)
    sizes = [size for _, size in SHAPES.values()]
    at = {theory.name: theory.s for theory in one.theories}
    assert at["16/r"] == pytest.approx(8)
    assert at["√(3n/r)"] == pytest.approx(np.prod([(3 * n / 2) ** 0.5 for n in sizes]) ** 0.5)
    assert one.spread == pytest.approx(2)
    assert "Where modules differ in s, it is their geometric mean." in scaling.notes([one])


def test_one_s_per_expert_is_read_by_its_mean(roots: Roots) -> None:
    folder = folder_of(roots, "a" * 12)
    folder.path.mkdir(parents=True)
    modules = {"q": {"scaling": [1.0, 4.0]}, "v": {"scaling": 8.0}}
    atomic.write_json(folder.result, {"id": folder.id, "metrics": {}, "modules": modules})
    assert scaling_runs.realised(folder) == (4.0, 8.0)
    atomic.write_json(folder.result, {"id": folder.id, "metrics": {}, "modules": {"q": {"scaling": None}}})
    assert scaling_runs.realised(folder) is None


def test_a_run_that_diverged_counts_as_the_worst_at_its_own_s(roots: Roots) -> None:
    trials = [replace(t, state="diverged") if t.s > 30 else t for t in search(4.0)]
    (one,) = scaling.curves(study_of(roots, trials))
    assert sorted(one.diverged) == pytest.approx(sorted(t.s for t in trials if t.s > 30))
    assert len(one.ids) == 20
    assert len(one.s) == 20 - len(one.diverged)


def test_a_grid_over_s_is_drawn_too(roots: Roots) -> None:
    (one,) = scaling.curves(study_of(roots, GRID))
    assert one.best.low < 4 < one.best.high
    assert len(one.ids) == len(GRID)


def test_fresh_seeds_are_not_in_the_curve_and_ranks_have_their_own(roots: Roots) -> None:
    fresh = [Trial(s=4.0, seed=seed, why="confirm") for seed in (7, 8)]
    found = scaling.curves(study_of(roots, [*search(2.0), *search(6.0, seed=1, rank=32), *fresh]))
    assert [(one.setting, len(one.ids)) for one in found] == [("rank=8", 20), ("rank=32", 20)]
    assert found[0].best.middle < found[1].best.middle


def test_what_else_was_searched_is_a_coordinate_and_not_a_panel(roots: Roots) -> None:
    trials = [replace(t, searched=(("method.init.rho", 1 + 0.1 * i),)) for i, t in enumerate(search(4.0))]
    study = study_of(roots, trials)
    assert scaling.curves(study) == []
    space = [{"key": key} for key in ("method.scaling.alpha", "train.lr", "method.init.rho")]
    tune = {"space": space, "tuner": {"metrics": [METRIC]}}
    atomic.write_json(roots.studies / "s" / "tune.json", tune)
    (one,) = scaling.curves(study)
    assert one.tuned == ("train.lr", "method.init.rho")
    assert one.best.low < 4 < one.best.high


def test_an_optimum_at_the_border_is_marked(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [t for t in search(4.0, number=40) if t.s > 8]
    (one,) = scaling.curves(study_of(roots, trials))
    assert one.edge
    assert "may lie beyond" in scaling.notes([one])[-1]
    lost = {theory.name: theory.loss.middle for theory in one.theories}
    assert math.isnan(lost["1"])
    drawn: list[Figure] = []
    monkeypatch.setattr(sheet, "save", lambda figure, *rest: drawn.append(figure) or [])
    assert "outside" in (draw(roots, trials)[".md"]).read_text()
    with sheet.rc():
        assert_readable(drawn[0])


def test_files_hold_the_numbers_and_are_equal_in_bytes(roots: Roots) -> None:
    trials = [*search(2.0), *search(6.0, method="goat", experts=4, seed=1)]
    paths = draw(roots, trials)
    assert set(paths) == {".pdf", ".svg", ".png", ".json", ".csv", ".md", ".tex"}
    before = {kind: path.read_bytes() for kind, path in paths.items()}
    table = pd.read_csv(paths[".csv"])
    assert len(table) == 8
    assert set(table["formula"]) == set(scaling_runs.FORMULAS)
    assert (table["log2_distance"] - np.log2(table["formula_s"] / table["best_s"])).abs().max() < 1e-9
    side = json.loads(paths[".json"].read_text())
    assert [panel["method"] for panel in side["panels"]] == ["lora", "goat"]
    assert len(side["runs"]) == 40
    assert {kind: path.read_bytes() for kind, path in draw(roots, trials).items()} == before


def test_where_s_does_not_vary_there_is_no_figure(roots: Roots) -> None:
    write_study(roots, "s", [Made(method=m, lr=lr, seed=s) for m in ("lora", "goat") for lr in (5e-4, 1e-3, 2e-3)
                             for s in range(3)])  # fmt: skip
    assert scaling.paint(read_study(roots)) == []
    assert (
        scaling.curves(study_of(roots, [Trial(s=s, lr=lr) for s in (1.0, 2.0, 4.0) for lr in (5e-4, 1e-3, 2e-3)])) == []
    )


def test_a_formula_is_the_projects_own(monkeypatch: pytest.MonkeyPatch, roots: Roots) -> None:
    monkeypatch.setattr(scaling_runs, "FORMULAS", {"3": Constant(value=3.0)})
    (one,) = scaling.curves(study_of(roots, search(4.0)))
    assert [(theory.name, theory.s) for theory in one.theories] == [("3", pytest.approx(3.0))]


def test_trials_that_were_not_the_best_at_their_rate_are_in_the_curve(roots: Roots) -> None:
    """A search over a grid has many values of s at one rate; other figures show the best of them."""
    trials = [Trial(s=2.0**k, lr=lr, why="tune") for k in range(-2, 7) for lr in (5e-4, 1e-3)]
    study_of(roots, trials)
    space = [{"key": "train.lr"}, {"key": "method.scaling.alpha"}]
    atomic.write_json(roots.studies / "s" / "tune.json", {"space": space, "tuner": {"metrics": [METRIC]}})
    study = read_study(roots)
    assert (study.prepared["fate"] == arms.BEATEN).sum() == 16
    (one,) = scaling.curves(study)
    assert len(one.ids) == 18
