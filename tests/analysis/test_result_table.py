import math
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from scipy.stats import binomtest
from synthetic import Made, id_of, stale, write_study

from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora_analysis import table, text
from ablora_analysis.figures import arms, result_table, result_text
from ablora_analysis.figures.main import chosen_items
from ablora_analysis.figures.result_table import ResultTable


def result_of(roots: Roots, runs: list[Made]) -> ResultTable:
    write_study(roots, "s", runs)
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    metrics = result_table.shown_metrics(prepared)
    return result_table.points(prepared, choices, chosen_items(roots, choices, metrics))


def seeds(method: str, num: int = 4, **fields: object) -> list[Made]:
    return [Made(method=method, seed=s, **fields) for s in range(num)]  # type: ignore[arg-type]


def test_best_ties_and_intervals(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora"), *seeds("milora"), *seeds("random_svd")])
    loss, match = result.panels
    assert (loss.metric, match.metric) == ("answer_loss_nats", "exact_match")
    lora, milora, _ = loss.cells
    assert (milora.best, lora.best, lora.tied, lora.score.basis) == (True, False, False, "seeds")
    assert milora.to_best is None
    assert lora.to_best is not None
    assert lora.to_best.difference == pytest.approx(lora.score.mean - milora.score.mean)  # token-weighted, as reported
    assert lora.to_best.items == 20
    assert 0 < lora.p_holm < 0.05
    assert math.isfinite(loss.detectable)
    assert len(result.ids) == 12


def test_a_diverged_seed_is_marked_and_not_ranked(roots: Roots) -> None:
    best = [replace(m, state="diverged") if m.seed == 0 else m for m in seeds("milora")]
    result = result_of(roots, [*seeds("lora"), *best, *seeds("pissa")])
    cell = result.panels[0].cells[1]
    assert (cell.not_ranked, cell.best, cell.to_best, cell.score.seeds) == ("diverged", False, None, 3)
    assert result.panels[0].cells[2].reference
    assert any(note.startswith("‡") for note in result.notes)
    assert result_table.number(cell).startswith(f"{cell.score.mean:.3f}‡")


def test_an_edge_rate_is_marked_and_not_ranked(roots: Roots) -> None:
    tuned = [m for lr in (5e-4, 1e-3, 2e-3) for m in seeds("lora", 3, lr=lr)]
    edge = [m for lr in (1e-3, 2e-3) for m in seeds("pissa", 3, lr=lr)]
    cells = result_of(roots, tuned + edge).panels[0].cells
    assert [(cell.arm, cell.not_ranked) for cell in cells] == [("lora", ""), ("pissa", "edge")]


@pytest.mark.parametrize(("num", "basis"), [(1, "items"), (2, "range")])
def test_below_three_seeds_nothing_is_called_best(roots: Roots, num: int, basis: str) -> None:
    result = result_of(roots, [*seeds("lora", num), *seeds("milora", num)])
    lora, milora = result.panels[0].cells
    assert (milora.reference, milora.best, lora.tied, milora.score.basis) == (True, False, False, basis)
    assert lora.to_best is not None
    assert lora.to_best.basis == basis
    assert math.isnan(lora.p_holm)
    sheet = result_text.sheet(result)
    assert not any(entry.bold for row in sheet.rows for entry in row)
    assert any(("over items only" if num == 1 else "their range") in note for note in sheet.notes)


def test_right_or_wrong_items_of_one_seed_claim_no_certainty(roots: Roots) -> None:
    """Every answer of both arms is wrong: a share of 0 of 20, and differences without any spread."""
    write_study(roots, "s", runs := [*seeds("lora", 1), *seeds("milora", 1)])
    for made in runs:
        path = roots.runs / id_of(made) / "evals" / "generation.jsonl"
        lines.write(path, [{**record, "correct": False} for record in lines.read(path)])
        result = roots.runs / id_of(made) / "result.json"
        told = atomic.read_json(result)
        atomic.write_json(result, told | {"metrics": told["metrics"] | {"exact_match": 0.0}})
    found = result_of_existing(roots)
    loss, match = found.panels
    assert [cell.score.basis for cell in (*loss.cells, *match.cells)] == ["items", "items", "share", "share"]
    high = binomtest(0, 20).proportion_ci(0.95, method="wilson").high
    assert result_table.number(match.cells[0]) == f"0.000 [0.000, {high:.3f}]"
    pair = match.cells[0].to_best or match.cells[1].to_best
    assert pair is not None
    assert (pair.difference, pair.basis) == (0.0, "none")
    assert "±" in result_table.number(loss.cells[0])
    assert any("Wilson" in note for note in found.notes)
    notes = result_text.sheet(found).notes
    assert any("no interval" in note for note in notes)
    figure = Figure()
    result_table.draw(axes := figure.add_subplot(), match)
    assert tuple(axes.lines[0].get_xdata()) == pytest.approx((0.0, high))


def test_one_method_alone_is_not_best(roots: Roots) -> None:
    (cell,) = result_of(roots, seeds("lora")).panels[0].cells
    assert (cell.best, cell.to_best, cell.score.seeds) == (False, None, 4)


def test_items_that_differ_are_not_compared_and_it_is_said(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora"), *seeds("milora", num_items=10)])
    assert "same items" in result.panels[0].refused
    assert not any(cell.best or cell.tied for panel in result.panels for cell in panel.cells)
    assert any(note.startswith("Not compared (answer_loss_nats") for note in result.notes)


def test_unequal_budgets_are_said(roots: Roots) -> None:
    result = result_of(roots, [*seeds("lora", rank=8), *seeds("full", rank=None)])
    assert any("Unequal budgets (arithmetic): 1,024 to 8,192" in note for note in result.notes)


def test_solved_ranks_split_no_arm_and_two_budgets_are_two_settings(roots: Roots) -> None:
    labels = (("rank", None), ("budget.params", "2k"))
    runs = [*seeds("lora", rank=8, labels=labels), *seeds("lora_fa", rank=16, labels=labels)]
    twice = [*runs, *(replace(m, labels=(*labels[:1], ("budget.params", "4k")), lr=2e-3) for m in runs)]
    assert {(b.setting, b.arm) for b in result_of(roots, twice).budgets} == {
        (f"params={size}", arm) for size in ("2k", "4k") for arm in ("lora", "lora_fa")
    }


def test_ranks_are_told_where_a_budget_made_them_differ(roots: Roots) -> None:
    solved = {"lora": 8, "lora_fa": 15, "full": None}
    runs = [m for name, rank in solved.items() for m in seeds(name, rank=rank, labels=(("rank", None),))]
    result = result_of(roots, runs)
    sheet = result_text.sheet(result)
    assert sheet.header[:4] == ("method", "rank", "parameters", "diverged")
    assert [[entry.text for entry in row[:2]] for row in sheet.rows] == [["lora", "8"], ["lora_fa", "15"], ["full", ""]]
    assert [len(row) for row in sheet.rows] == [len(sheet.header)] * 3
    assert dict(result_text.frame(result)[["arm", "rank"]].itertuples(index=False)) == {
        "lora": "8",
        "lora_fa": "15",
        "full": "",
    }


def test_ranks_that_are_the_settings_own_are_not_told_again(roots: Roots) -> None:
    runs = [m for r in (4, 8) for name in ("lora", "pissa") for m in seeds(name, rank=r, labels=(("rank", str(r)),))]
    result = result_of(roots, runs)
    assert {(b.setting, b.rank) for b in result.budgets} == {("rank=4", "4"), ("rank=8", "8")}
    assert "rank" not in result_text.sheet(result).header


def test_metrics_without_item_records_are_paired_on_seeds(roots: Roots) -> None:
    runs = [*seeds("lora"), *seeds("milora")]
    write_study(roots, "s", runs)
    (roots.runs / id_of(runs[0]) / "evals" / "generation.jsonl").unlink()
    result = result_of_existing(roots)
    pair = result.panels[1].cells[0].to_best or result.panels[1].cells[1].to_best
    assert pair is not None
    assert pair.items == 1
    assert "Paired on seeds alone, no item records: exact_match." in result.notes


def result_of_existing(roots: Roots) -> ResultTable:
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    items = chosen_items(roots, choices, result_table.shown_metrics(prepared))
    return result_table.points(prepared, choices, items)


def test_tables_as_text(roots: Roots) -> None:
    runs = [m for name in ("lora", "molora_topk") for d in ("gsm8k", "svamp") for m in seeds(name, dataset=d)]
    result = result_of(roots, runs)
    sheet = result_text.sheet(result)
    assert sheet.header[:5] == ("method", "parameters", "diverged", "gsm8k: lr", "gsm8k: answer_loss_nats")
    assert [len(row) for row in sheet.rows] == [len(sheet.header)] * 2
    tex, md = text.latex(sheet), text.markdown(sheet)
    assert r"\toprule" in tex
    assert r"molora\_topk & 8,192" in tex
    assert r"\textbf{" in tex
    assert "±" not in tex
    assert "| molora\\_topk |" in md
    frame = result_text.frame(result)
    assert len(frame) == 8
    assert {"mean", "low", "high", "difference_low", "p_holm", "seeds", "lr"} <= set(frame)


def test_signs_are_escaped() -> None:
    sheet = text.Sheet(("a|b", "x_y"), ((text.Entry("50 % & #1"), text.Entry("{1}", True)),), ("p < 0.05",))
    assert r"50 \% \& \#1 & \textbf{\{1\}} \\" in text.latex(sheet)
    assert r"$<$ 0.05" in text.latex(sheet)
    assert r"| a\|b | x\_y |" in text.markdown(sheet)
    assert "**{1}**" in text.markdown(sheet)
