import math

import pytest
from synthetic import Made, id_of, stale, write_study
from synthetic_beside import BASE_LOSS, FLOOR

from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table, text
from ablora_analysis.figures import arms, forgetting_table, result_table
from ablora_analysis.figures.forgetting_table import KL, LOSS, METRICS, TEXT, ForgettingTable
from ablora_analysis.figures.study import chosen_items


def table_of(roots: Roots) -> ForgettingTable:
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    choices = arms.choose(prepared)
    return forgetting_table.points(prepared, choices, chosen_items(roots, choices, METRICS))


def runs(*methods: str, **fields: object) -> list[Made]:
    return [Made(method=m, seed=s, forgets=True, **fields) for m in methods for s in range(3)]  # type: ignore[arg-type]


def test_the_base_is_a_row_and_the_least_kl_is_best(roots: Roots) -> None:
    write_study(roots, "s", runs("lora", "milora"))
    found = table_of(roots)
    (base,) = found.bases
    assert base.values == pytest.approx({LOSS: FLOOR, TEXT: BASE_LOSS, KL: 0.0, "top1_agreement": 1.0})
    panels = {panel.metric: panel for panel in found.result.panels}
    assert [cell.best for cell in panels[KL].cells] == [False, True]
    for kl, loss in zip(panels[KL].cells, panels[LOSS].cells):
        assert loss.score.mean == pytest.approx(kl.score.mean + FLOOR)
    pair = panels[KL].cells[0].to_best
    assert pair is not None
    assert pair.items == 12  # chunks of text
    assert any("2.300" in note for note in found.notes)


def test_numbers_are_those_of_the_chunks_weighed_by_tokens(roots: Roots) -> None:
    write_study(roots, "s", made := runs("lora", "milora"))
    cell = next(p for p in table_of(roots).result.panels if p.metric == KL).cells[0]
    per_seed = []
    for run in map(id_of, made[:3]):
        chunks = list(lines.read(folder_of(roots, run).items("forgetting")))
        per_seed.append(sum(c["kl_nats"] for c in chunks) / sum(c["tokens"] for c in chunks))
    assert cell.score.mean == pytest.approx(sum(per_seed) / 3)


def test_as_text(roots: Roots) -> None:
    write_study(roots, "s", [m for d in ("gsm8k", "svamp") for m in runs("lora", "milora", dataset=d)])
    found = table_of(roots)
    sheet = forgetting_table.table_sheet(found)
    assert [row[0].text for row in sheet.rows] == ["base (gsm8k)", "lora", "milora", "base (svamp)", "lora", "milora"]
    assert {len(row) for row in sheet.rows} == {len(sheet.header)}
    assert sheet.rows[0][3].text == "0.000"
    assert sheet.rows[2][3].bold
    assert r"\toprule" in text.latex(sheet)
    frame = forgetting_table.frame(found)
    assert len(frame) == 2 * 2 * len(METRICS)
    assert frame[frame["metric"] == LOSS]["base"].tolist() == pytest.approx([FLOOR] * 4)


def test_another_base_in_one_run_is_said(roots: Roots) -> None:
    write_study(roots, "s", made := runs("lora", "milora"))
    path = folder_of(roots, id_of(made[0])).result
    told = atomic.read_json(path)
    atomic.write_json(path, told | {"metrics": told["metrics"] | {"forgetting_floor_nats": FLOOR + 0.1}})
    found = table_of(roots)
    assert found.bases[0].differs == (LOSS,)
    assert any("not the same in all runs" in note for note in found.notes)


def test_an_arm_that_did_not_measure_it_is_named(roots: Roots) -> None:
    write_study(roots, "s", [*runs("lora", "milora"), *(Made(method="goat", seed=s) for s in range(3))])
    found = table_of(roots)
    assert "Forgetting not measured: goat." in found.notes
    assert math.isnan(found.result.panels[0].detectable) is False


def test_the_main_table_shows_of_forgetting_the_kl_alone(roots: Roots) -> None:
    write_study(roots, "s", [Made(seed=s, forgets=True, experts=4) for s in range(3)])
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    assert result_table.shown_metrics(prepared) == ["answer_loss_nats", "exact_match", KL]
