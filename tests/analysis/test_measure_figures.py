"""Figures from measures: their numbers against the frames they come from, their gaps, and their bytes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import beta
from synthetic import Made, id_of, stale, write_study
from synthetic_measures import Measures, measures, phi, write_measures
from test_figures_main import assert_readable

from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora_analysis import stats, table
from ablora_analysis.figures import (
    arms,
    measured,
    phi_map,
    phi_pairs,
    projection_sheet,
    projection_table,
    sheet,
    subspace_panels,
)
from ablora_analysis.figures.main import FIGURES
from ablora_analysis.figures.study import Study

PAINTS = (subspace_panels.paint, phi_map.paint, projection_sheet.paint)
STEMS = {"subspace_panels", "subspace_kinds", "phi_matrix", "phi_map", "projection_table"}


def runs_of(*methods: str, seeds: int = 2) -> list[Made]:
    return [Made(method=method, seed=seed, rank=4) for method in methods for seed in range(seeds)]


def study_of(roots: Roots, runs: list[Made], found: Measures | None) -> Study:
    write_study(roots, "s", runs)
    if found is not None:
        write_measures(roots, "s", found)
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    folder = roots.studies / "s"
    return Study(roots, "s", folder / "figures", prepared, arms.choose(prepared), {"study": "s"}, folder / "measures")


def paint(study: Study) -> list[Path]:
    with sheet.rc():
        return [path for one in PAINTS for path in one(study)]


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Figure, dict]]:
    """What would be saved, by name: drawing pixels three times over is most of a test's time."""
    kept: dict[str, tuple[Figure, dict]] = {}

    def keep(figure: Figure, stem: Path, ids: list[str], side: dict) -> list[Path]:
        kept[stem.name] = figure, side
        return [stem]

    monkeypatch.setattr(sheet, "save", keep)
    return kept


@pytest.fixture(scope="module")
def four() -> tuple[list[Made], Measures]:
    runs = runs_of("lora", "rslora", "pissa", "goat", seeds=3)
    return runs, measures(runs)


def test_the_main_list_paints_them() -> None:
    assert set(PAINTS) <= set(FIGURES)


def test_files_repeat_byte_for_byte_and_name_their_runs(roots: Roots) -> None:
    runs = runs_of("lora", "goat")
    found = measures(runs, layers=1)
    study = study_of(roots, runs, found)
    paths = paint(study)
    names = {f"{stem}.{kind}" for stem in STEMS for kind in ("pdf", "svg", "png", "json")}
    assert {path.name for path in paths} == names | {f"projection_table.{kind}" for kind in ("csv", "md", "tex")} | {
        "phi_matrix.csv"
    }
    before = {path: path.read_bytes() for path in paths}
    for name, frame in found._asdict().items():  # a run that is not compared changes no byte
        pd.concat([frame.assign(id="f" * 12), frame]).to_parquet(study.measures / f"{name}.parquet", index=False)
    assert {path: path.read_bytes() for path in paint(study)} == before
    for stem in STEMS:
        side = json.loads((study.folder / f"{stem}.json").read_text())
        assert side["runs"] == sorted(map(id_of, runs)), stem
        assert any("Mixtures (goat): the expected update" in note for note in side["notes"]), stem


def test_a_study_without_measures_has_no_such_figure(roots: Roots) -> None:
    assert paint(study_of(roots, runs_of("lora"), None)) == []


def test_a_broken_table_is_named(roots: Roots) -> None:
    runs = runs_of("lora")
    study = study_of(roots, runs, measures(runs, layers=1, kinds=["q_proj"]))
    path = study.measures / "subspace.parquet"
    pd.read_parquet(path).drop(columns="phi").to_parquet(path)
    with pytest.raises(Corrupted, match=r"subspace\.parquet.*the column phi"):
        paint(study)
    path.write_bytes(b"PAR1")
    with pytest.raises(Corrupted, match=r"subspace\.parquet.*ablora analyse"):
        paint(study)


def test_panels_are_means_over_modules_then_seeds(roots: Roots, four: tuple[list[Made], Measures]) -> None:
    runs, found = four
    study = study_of(roots, runs, found)
    rows = measured.whole(found.subspace, study.choices)
    panels = subspace_panels.points(rows, "layer", ["lora", "rslora", "pissa", "goat"])
    assert [(p.against, p.side) for p in panels] == [(a, s) for a in ("top", "bottom", "random")
                                                     for s in ("left", "right")]  # fmt: skip
    own = found.subspace.query("against == 'top' and side == 'right' and layer == 1")
    ids = [id_of(made) for made in runs if made.method == "pissa"]
    by_run = [own[own["id"] == run]["phi"].mean() for run in ids]
    line = panels[1].lines[2]
    assert (line.arm, line.seeds) == ("pissa", 3)
    assert (line.mean[1], line.low[1], line.high[1]) == pytest.approx((np.mean(by_run), min(by_run), max(by_run)))
    assert panels[1].null == pytest.approx([4 / 48] * 2)
    assert panels[0].null == pytest.approx([(4 / 48 + 4 / 24) / 2] * 2)  # q_proj has 48 outputs, v_proj 24
    assert line.mean[1] > 0.7 > 3 * panels[1].null_high[1]
    expected = own[(own["part"] == "expected")]["phi"]
    goat = panels[1].lines[3]  # of a mixture the expected update, and no expert
    assert goat.mean[1] == pytest.approx(expected.mean())
    kinds = subspace_panels.points(rows, "kind", ["lora"])
    assert kinds[0].at.labels == ("q", "v")
    assert kinds[0].null == pytest.approx([4 / 48, 4 / 24])


def test_an_undefined_value_is_a_gap_and_is_counted(roots: Roots, unsaved: dict) -> None:
    runs = runs_of("lora", "pissa")
    found = measures(runs)
    lost = (found.subspace["id"] == id_of(runs[0])) & (found.subspace["layer"] == 0)
    lost &= found.subspace["kind"] == "q_proj"
    zero = {"phi": np.nan, "null": np.nan, "null_low": np.nan, "null_high": np.nan, "i": 0, "j": 0}
    found.subspace.loc[lost, [*zero, "reason"]] = [*zero.values(), "the update is zero"]
    study = study_of(roots, runs, found)
    rows = measured.whole(found.subspace, study.choices)
    lora, pissa = subspace_panels.points(rows, "layer", ["lora", "pissa"])[0].lines
    assert math.isnan(lora.mean[0])  # the mean of the other seed or kind would hide it
    assert not math.isnan(lora.mean[1])
    assert not math.isnan(pissa.mean[0])
    paint(study)
    notes = " ".join(unsaved["subspace_panels"][1]["notes"])
    assert "Gaps: 6 of 96 values are undefined (the update is zero)." in notes
    assert "r = 4." in notes


def test_runs_that_were_not_measured_are_counted(roots: Roots, unsaved: dict) -> None:
    runs = runs_of("lora", "pissa")
    study = study_of(roots, runs, measures(runs[:-1], layers=1))
    paint(study)
    _, side = unsaved["subspace_panels"]
    assert side["without_measures"] == [id_of(runs[-1])]
    assert "Without measures: 1 of 4 runs." in side["notes"]
    assert "In no pair: 1 of 4 runs." in unsaved["phi_map"][1]["notes"]


def test_phi_of_pairs_keeps_unequal_and_equal_seeds_apart(four: tuple[list[Made], Measures], roots: Roots) -> None:
    runs, found = four
    study = study_of(roots, runs, found)
    blocks = phi_pairs.blocks(phi_pairs.of_runs(found.phi, study.choices), study.choices)
    of = {(b.arm_a, b.arm_b, b.side, b.equal_seeds): b for b in blocks}
    seeds = {id_of(made): made.seed for made in runs}
    methods = {id_of(made): made.method for made in runs}
    frame = found.phi.query("side == 'left' and i == 4 and j == 4")
    pair = frame["id"].map(methods).isin(["lora", "rslora"]) & frame["id_b"].map(methods).isin(["lora", "rslora"])
    cross = frame[pair & (frame["id"].map(methods) != frame["id_b"].map(methods))]
    equal = cross["id"].map(seeds) == cross["id_b"].map(seeds)
    assert of["lora", "rslora", "left", False].at(4).phi == pytest.approx(cross[~equal]["phi"].mean())
    assert of["lora", "rslora", "left", True].at(4).phi == pytest.approx(cross[equal]["phi"].mean())
    assert (of["lora", "rslora", "left", False].pairs, of["lora", "rslora", "left", True].pairs) == (6, 3)
    assert of["lora", "lora", "left", False].pairs == 3
    assert of["lora", "rslora", "right", True].shared_start
    assert of["lora", "rslora", "right", True].at(4).phi == pytest.approx(1.0)
    assert not of["lora", "pissa", "right", True].shared_start


def test_phi_maps_are_turned_to_the_plan_and_symmetric_within_a_method(
    roots: Roots, four: tuple[list[Made], Measures]
) -> None:
    runs, found = four
    study = study_of(roots, runs, found)
    blocks = phi_pairs.blocks(phi_pairs.of_runs(found.phi, study.choices), study.choices)
    (seed,) = [b for b in blocks if (b.arm_a, b.arm_b, b.side) == ("pissa", "pissa", "left")]
    assert np.array_equal(seed.phi, seed.phi.T)
    turned = found.phi.rename(columns={"id": "id_b", "id_b": "id", "i": "j", "j": "i", "part": "part_b",
                                       "part_b": "part"})  # fmt: skip
    others = phi_pairs.blocks(phi_pairs.of_runs(turned, study.choices), study.choices)
    for one, other in zip(blocks, others):
        assert (one.arm_a, one.arm_b) == (other.arm_a, other.arm_b)
        assert one.phi == pytest.approx(other.phi)
    (cross,) = [b for b in blocks if (b.arm_a, b.arm_b, b.side, b.equal_seeds) == ("lora", "pissa", "right", False)]
    assert not np.allclose(cross.phi, cross.phi.T)


def test_a_difference_as_between_seeds_is_marked() -> None:
    same = runs_of("lora", "rslora", "pissa", seeds=3)
    found = measures(same)
    choices = [_choice(name, same) for name in ("lora", "rslora", "pissa")]
    cells = phi_pairs.cells(phi_pairs.blocks(phi_pairs.of_runs(found.phi, choices), choices))
    marked = {(c.arm_a, c.arm_b, c.side) for c in cells if c.as_between_seeds}
    assert ("lora", "rslora", "left") in marked
    assert ("lora", "pissa", "left") not in marked  # LoRA's seeds share two directions there, PiSSA has others


def test_ranks_a_grid_and_a_zero_update_keep_their_places() -> None:
    runs = [Made(seed=0, rank=4), Made(seed=1, rank=4)]
    found = measures(runs, layers=1).phi
    choices = [_choice("lora", runs)]
    coarse = found[found["i"].isin([1, 4]) & found["j"].isin([1, 4])]
    (left, _) = phi_pairs.blocks(phi_pairs.of_runs(coarse, choices), choices)
    (full, _) = phi_pairs.blocks(phi_pairs.of_runs(found, choices), choices)
    assert left.index == (1, 4)
    assert left.at(4) == full.at(4)
    assert left.size == 4
    one = found["module"] == found["module"].iloc[0]
    zero = found[one].drop_duplicates(["side"]).assign(i=0, j=0, phi=np.nan, null=np.nan, reason="the update is zero")
    (left, _) = phi_pairs.blocks(phi_pairs.of_runs(pd.concat([found[~one], zero]), choices), choices)
    assert (left.size, left.undefined) == (0, 1)
    (left, _) = phi_pairs.blocks(phi_pairs.of_runs(zero, choices), choices)
    assert (left.size, left.undefined, left.index) == (0, 1, ())
    lower = found[~(one & ((found["i"] > 3) | (found["j"] > 3)))]  # one module of rank 3: nothing beyond is a mean
    (left, _) = phi_pairs.blocks(phi_pairs.of_runs(lower, choices), choices)
    assert left.size == 3
    assert np.isnan(left.phi[3]).all()
    assert left.at(3) == full.at(3)


@pytest.mark.parametrize(("i", "j", "d"), [(1, 1, 12), (3, 5, 20), (8, 8, 24), (24, 3, 24)])
def test_the_spread_of_random_subspaces_is_exact(i: int, j: int, d: int) -> None:
    rng = np.random.default_rng(0)
    one = np.eye(d)[:, :i]
    draws = np.array([phi(one, np.linalg.qr(rng.normal(size=(d, j)))[0])[-1, -1] for _ in range(4000)])
    # The sampled standard deviation of 4000 draws has a relative error of about 1.5 to 2 %.
    assert phi_pairs.random_sd(np.array(i), np.array(j), np.array(d)) == pytest.approx(draws.std(), rel=0.08, abs=1e-9)
    assert draws.mean() == pytest.approx(max(i, j) / d, rel=0.03)


def test_the_spread_of_one_direction_is_beta_s() -> None:
    """The squared cosine of two random directions in R^d is Beta(1/2, (d - 1) / 2)."""
    d = np.array([2, 5, 64])
    assert phi_pairs.random_sd(np.array(1), np.array(1), d) == pytest.approx(beta(0.5, (d - 1) / 2).std())


def test_matrix_has_seeds_on_the_diagonal_and_the_null_in_the_corner(
    roots: Roots, four: tuple[list[Made], Measures]
) -> None:
    runs, found = four
    study = study_of(roots, runs, found)
    blocks = phi_pairs.blocks(phi_pairs.of_runs(found.phi, study.choices), study.choices)
    left, right = phi_map.points(blocks, [choice.arm for choice in study.choices])
    assert left.arms == ("lora", "rslora", "pissa", "goat")
    assert right.null == pytest.approx(4 / 48)
    with sheet.rc():
        figure, (ax,) = sheet.page([3.0], 1, 3.3, "", {})
        image = phi_map.draw(ax, right).get_array()
    of = {(c.arm_a, c.arm_b, c.equal_seeds): c.level.phi for c in right.cells}
    assert image[2, 2] == pytest.approx(of["pissa", "pissa", False])
    assert image[2, 0] == pytest.approx(of["lora", "pissa", False])  # below the diagonal: unequal seeds
    assert image[0, 1] == pytest.approx(of["lora", "rslora", True])  # above it: equal ones
    assert image[4, 4] == pytest.approx(4 / 48)
    assert np.ma.getmaskarray(image)[4, :4].all()
    texts = {text.get_text() for text in ax.texts}
    assert "1.00\n°" in texts
    assert figure is ax.figure


def test_projection_table_has_the_frame_s_numbers_and_honest_intervals(
    roots: Roots, four: tuple[list[Made], Measures], unsaved: dict
) -> None:
    runs, found = four
    study = study_of(roots, runs, found)
    rows = measured.whole(found.projection, study.choices)
    projection = projection_table.points(rows, study.choices)
    own = found.projection.query("basis == 'update' and part != 'expert 0' and part != 'expert 1'")
    for arm in ("pissa", "goat"):
        ids = [id_of(made) for made in runs if made.method == arm]
        expected = stats.summary(own[own["id"] == run]["norm_w"].mean() for run in ids)
        value = projection.of(arm, "w_update")
        assert value is not None
        assert value.score is not None
        assert value.score[:5] == pytest.approx(expected[:5])
        assert value.score.basis == expected.basis == "seeds"
        assert (value.modules, value.undefined, value.ranks) == (4, 0, (4,))
    random, check = projection.of("lora", "w_random"), projection.of("lora", "expected_random")
    assert random is not None
    assert check is not None
    assert random.score is not None
    assert check.score is not None
    assert random.score.mean == pytest.approx(check.score.mean, rel=0.35)
    paint(study)
    written = pd.read_csv(study.folder / "projection_table.csv")
    assert set(written["kind"]) == {"all", "q_proj", "v_proj"}
    row = written.query("arm == 'lora' and kind == 'v_proj' and basis == 'update' and quantity == 'amplification'")
    by_hand = own[(own["id"].isin([id_of(m) for m in runs if m.method == "lora"])) & (own["kind"] == "v_proj")]
    assert row["mean"].item() == pytest.approx(by_hand.groupby("id")["amplification"].mean().mean())
    assert "lora" in (study.folder / "projection_table.md").read_text()
    assert r"\toprule" in (study.folder / "projection_table.tex").read_text()
    assert (study.folder / "projection_table.tex").read_text().isascii()


def test_a_module_without_a_number_is_marked_in_the_table(roots: Roots, unsaved: dict) -> None:
    runs = runs_of("lora")
    found = measures(runs)
    gone = found.projection["module"].str.contains("layers.0.self_attn.q_proj")
    columns = ["norm_w", "norm_update", "amplification", "expected_random"]
    found.projection.loc[gone, [*columns, "reason"]] = [*[np.nan] * 4, "the update is zero"]
    study = study_of(roots, runs, found)
    projection = projection_table.points(measured.whole(found.projection, study.choices), study.choices)
    value = projection.of("lora", "w_update")
    assert value is not None
    assert (value.modules, value.undefined) == (4, 2)
    assert "†" in projection_table.number(value)
    whole = projection.of("lora", "w_update", "q_proj")
    assert whole is not None
    assert whole.score is not None  # layer 1 is left
    paint(study)
    notes = unsaved["projection_table"][1]["notes"]
    assert "Gaps: 2 of 8 values are undefined (the update is zero)." in notes


@pytest.mark.parametrize(
    ("value", "text"), [(97.36, "97.4"), (0.0123456, "0.0123"), (0.0, "0"), (1234.5, "1234"), (1.5e-6, "1.50e-06")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    score = stats.summary([value])
    made = projection_table.Value("a", "a", 1.0, "all", "update", score, 1, 0, (4,))
    assert projection_table.number(made) == text
    assert projection_table.number(made._replace(score=None)) == "–"


@pytest.mark.parametrize(
    "runs",
    [
        runs_of("lora", seeds=1),
        runs_of("lora", "pissa", seeds=1),
        [replace(made, dataset=data) for data in ("gsm8k", "svamp") for made in runs_of("lora", "goat")],
        [Made(seed=seed, rank=rank) for rank in (2, 4) for seed in range(2)],
        runs_of("lora", "rslora", "pissa", "milora", "random_svd", "molora_topk", "goat", "a_method_of_a_long_name"),
    ],
    ids=["one run", "one seed", "two data sets", "ranks", "eight methods"],
)
def test_small_and_wide_studies_are_drawn_without_clipping(roots: Roots, unsaved: dict, runs: list[Made]) -> None:
    paint(study_of(roots, runs, measures(runs, layers=1, kinds=["v_proj"])))
    assert unsaved
    for figure, _ in unsaved.values():
        with sheet.rc():
            assert_readable(figure)


def _choice(arm: str, runs: list[Made]) -> arms.Choice:
    own = [made for made in runs if made.method == arm]
    seeds, ids = tuple(made.seed for made in own), tuple(id_of(made) for made in own)
    known = {"setting": "", "dataset": "d", "arm": arm, "method": arm, "lr": 1e-3, "lrs": (1e-3,), "metric": "",
             "edge": False, "seeds": seeds, "ids": ids, "diverged": (), "diverged_share": "0/2"}  # fmt: skip
    return arms.Choice(**{name: known[name] for name in arms.Choice._fields if name in known})
