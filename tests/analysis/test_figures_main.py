import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from synthetic import Made, id_of, stale, write_study

from ablora.spec import BadInput
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis.figures import sheet, style
from ablora_analysis.figures.main import draw_all

NAMES = {f"{stem}.{kind}" for stem in ("result_table", "training_curves", "lr_curves") for kind in
         ("pdf", "svg", "png", "json")} | {f"result_table.{kind}" for kind in ("csv", "md", "tex")}  # fmt: skip


def grid(*methods: str, lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3), seeds: int = 3) -> list[Made]:
    return [Made(method=m, lr=lr, seed=s) for m in methods for lr in lrs for s in range(seeds)]


def test_figures_are_equal_in_bytes_and_carry_their_runs(roots: Roots, tmp_path: Path) -> None:
    runs = [replace(m, state="diverged") if m.lr == 2e-3 and m.seed == 0 else m for m in grid("lora", "pissa")]
    runs[0] = replace(runs[0], state="bug")
    write_study(roots, "s", runs)
    other = Roots(tmp_path / "b" / "runs", tmp_path / "b" / "studies", tmp_path / "b" / "cache")
    shutil.copytree(tmp_path / "runs", other.runs)
    shutil.copytree(tmp_path / "studies", other.studies)
    one = draw_all(roots, "s", stale)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # a user's own settings change nothing
        two = draw_all(other, "s", stale)
    assert {path.name for path in one} == NAMES
    assert {path.parent for path in one} == {roots.studies / "s" / "figures"}
    for a, b in zip(one, two):
        assert a.name == b.name
        assert a.read_bytes() == b.read_bytes(), a.name
    side = json.loads((roots.studies / "s" / "figures" / "result_table.json").read_text())
    assert side["left_out"] == {"failed (bug)": [id_of(runs[0])]}
    assert len(side["runs"]) == 6
    ids = " ".join(side["runs"])
    folder = one[0].parent
    assert ids in (folder / "result_table.pdf").read_bytes().decode("latin1")
    assert side["runs"][0] in (folder / "result_table.svg").read_text()
    with Image.open(folder / "result_table.png") as image:
        assert ids in image.info["Keywords"]
        assert "Software" not in image.info
    assert not re.search(rb"CreationDate|<dc:date>", (folder / "lr_curves.pdf").read_bytes())
    assert "<dc:date>" not in (folder / "lr_curves.svg").read_text()


@pytest.mark.parametrize(
    "runs",
    [
        [Made()],
        [Made(seed=0), Made(seed=1)],
        [Made(seed=s, state=state) for s, state in enumerate(("done", "done", "diverged"))]
        + [Made(method="pissa", state="diverged")],
        [Made(method=m, seed=s, dataset=d, rank=r) for m in ("lora", "a_method_with_a_very_long_name")
         for d in ("gsm8k", "svamp") for r in (4, 8) for s in range(2)],
        [Made(method=m, seed=s, dataset=d, forgets=True, experts=0 if m == "lora" else 4)
         for m in ("lora", "a_mixture_with_a_long_name") for d in ("gsm8k", "svamp") for s in range(2)],
        [Made(method="goat", forgets=True, experts=8)],
    ],
    ids=["one run", "two seeds", "diverged", "eight panels", "forgetting and mixtures", "one mixture"],
)  # fmt: skip
def test_small_and_wide_studies_are_drawn_without_clipping(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, runs: list[Made]
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(sheet, "save", lambda figure, *rest: drawn.append(figure) or [Path("x")])
    write_study(roots, "s", runs)
    draw_all(roots, "s", stale)
    for figure in drawn:
        with sheet.rc():
            assert_readable(figure)


def test_records_that_cannot_be_read_cost_their_own_figure_only(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    monkeypatch.setattr(sheet, "save", lambda figure, stem, *rest: saved.append(stem.name) or [stem])
    (run,) = write_study(roots, "s", [Made(method="goat", forgets=True, experts=4)])
    folder_of(roots, run).items("routing").write_text('{"item": "q"}\n')
    with pytest.raises(Corrupted, match=r"routing\.jsonl"):
        draw_all(roots, "s", stale)
    assert sorted(saved) == sorted(["result_table", "training_curves", "lr_curves", "pareto", "forgetting_table",
                                    "routing_curves"])  # fmt: skip


def assert_readable(figure: Figure) -> None:
    """Everything lies on the page, at a column's width and at 7 points or more."""
    figure.draw_without_rendering()
    renderer, page = figure.canvas.get_renderer(), figure.bbox  # type: ignore[attr-defined]
    for part in [*figure.axes, *figure.legends, *figure.texts, figure._supxlabel]:
        box = part.get_tightbbox(renderer)
        inside = page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
        assert inside, (part, box, page.extents)
    assert min(label.get_fontsize() for label in figure.findobj(Text)) >= 7
    assert figure.get_size_inches()[0] in (style.COLUMN_IN, 2 * style.COLUMN_IN)


def test_no_finished_run_is_a_clear_refusal(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    states = ("planned", "diverged", "stale")
    write_study(roots, "s", [Made(seed=seed, state=state) for seed, state in enumerate(states)])
    with pytest.raises(BadInput, match="1 planned, 1 diverged, 1 stale"):
        draw_all(roots, "s", stale)
    with caplog.at_level(logging.WARNING), pytest.raises(BadInput, match="none of s has one"):
        draw_all(roots, None, stale)
    assert "finished run" in caplog.text


def test_all_studies_are_drawn_and_an_unfinished_one_is_named(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sheet, "save", lambda figure, stem, *rest: [stem])
    write_study(roots, "a", [Made(seed=0)])
    write_study(roots, "b", [Made(seed=9, state="planned")])
    write_study(roots, "c", [Made(seed=1)])
    with caplog.at_level(logging.WARNING):
        paths = draw_all(roots, None, stale)
    assert {path.parent.parent.name for path in paths} == {"a", "c"}
    assert "study='b'" in caplog.text
    with pytest.raises(BadInput, match="no study"):
        draw_all(Roots(roots.runs, roots.cache, roots.cache), None, stale)


def test_a_broken_run_is_named_after_the_rest_is_drawn(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    monkeypatch.setattr(sheet, "save", lambda figure, stem, *rest: saved.append(stem) or [stem])
    first, _ = write_study(roots, "s", [Made(seed=0), Made(seed=1)])
    folder_of(roots, first).result.write_text("{")
    with pytest.raises(Corrupted, match=f"{first}/result.json"):
        draw_all(roots, "s", stale)
    assert len(saved) == 3
