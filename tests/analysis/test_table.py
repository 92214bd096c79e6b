import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic import Made, id_of, stale, write_study

from ablora.spec import BadInput
from ablora.store import lines
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table

STATES = ("done", "diverged", "bug", "planned", "stale")


def test_one_row_per_run_in_the_order_of_the_plan_with_its_state(roots: Roots) -> None:
    runs = [Made(seed=seed, state=state) for seed, state in enumerate(STATES)]
    write_study(roots, "s", [*runs, runs[0]])
    found = pd.read_parquet(table.collect(roots, "s", stale))
    assert list(found["id"]) == [id_of(made) for made in runs]
    assert list(found["state"]) == ["done", "failed", "failed", "planned", "done"]
    assert list(found["failure_class"].fillna("")) == ["", "diverged", "bug", "", ""]
    assert list(found["stale"]) == [False, False, False, False, True]
    assert list(found["cells"]) == [2, 1, 1, 1, 1]
    assert found["answer_loss_nats"].notna().tolist() == [True, False, False, False, True]


def test_a_row_says_what_the_run_is(roots: Roots) -> None:
    write_study(roots, "s", [Made(labels=(("method/init", "zero_b"), ("method.experts", 4)))])
    row = pd.read_parquet(table.collect(roots, "s", stale)).iloc[0]
    wanted = {
        "method": "lora", "method_class": "LowRank", "init": "ZeroB", "scaling": "AlphaOverR", "structure": "Pair",
        "update": "Plain", "rank": 8, "lr": 1e-3, "seed": 0, "dataset": "arithmetic", "model": "pico", "max_steps": 40,
        "batch_size": 16, "step": 40, "trainable_parameters": 8192, "adapter_bytes": 4096,
        "label.method/init": "zero_b", "label.method.experts": "4",
    }  # fmt: skip
    assert {key: row[key] for key in wanted} == wanted
    assert table.metrics_of(row.to_frame().T) == ["answer_loss_nats", "exact_match", "train_loss_nats"]


def test_tables_are_equal_in_bytes_wherever_and_whenever_the_runs_ran(roots: Roots, tmp_path: Path) -> None:
    write_study(roots, "s", [Made(seed=seed, state=state) for seed, state in enumerate(STATES)])
    other = Roots(tmp_path / "b" / "runs", tmp_path / "b" / "studies", tmp_path / "b" / "cache")
    shutil.copytree(roots.runs, other.runs)
    shutil.copytree(roots.studies, other.studies)
    for folder in other.runs.iterdir():  # as after a kill and a resume: other times, other claims
        lines.write(folder / "timing.jsonl", [{"step": 1, "wall_s": 9.0, "tokens": 800, "tokens_per_s": 1.0}])
    one, two = table.collect(roots, "s", stale), table.collect(other, "s", stale)
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".csv").read_bytes() == two.with_suffix(".csv").read_bytes()
    assert not list(one.parent.glob(".*"))


@pytest.mark.parametrize(
    ("file", "text"),
    [("result.json", "{"), ("result.json", '{"id": "another", "metrics": {}}'), ("spec.json", "[]"),
     ("result.json", '{"id": "ID", "metrics": [1]}')],
)  # fmt: skip
def test_a_broken_file_is_named_and_the_rest_is_kept(roots: Roots, file: str, text: str) -> None:
    first, second = write_study(roots, "s", [Made(seed=0), Made(seed=1)])
    broken = folder_of(roots, first)
    (broken.path / file).write_text(text.replace("ID", first))
    with pytest.raises(Corrupted, match=f"{first}/{file}"):
        table.collect(roots, "s", stale)
    found = pd.read_parquet(roots.studies / "s" / "tables" / "runs.parquet").set_index("id")
    assert found.loc[first, "problem"].startswith(f"{first}/{file}")
    assert pd.isna(found.loc[second, "problem"])
    assert found.loc[second, "state"] == "done"


def test_a_run_that_cannot_be_checked_is_neither_stale_nor_fresh(roots: Roots) -> None:
    write_study(roots, "s", [Made()])

    def broken(folder: object) -> bool:
        raise FileNotFoundError("data.jsonl")

    assert pd.read_parquet(table.collect(roots, "s", broken))["stale"].isna().all()


def test_an_unknown_study_names_those_that_exist(roots: Roots) -> None:
    write_study(roots, "there", [Made()])
    with pytest.raises(BadInput, match="there"):
        table.collect(roots, "typo", stale)
    assert table.studies(roots) == ["there"]


def test_cells_that_are_one_run_are_two_rows(roots: Roots) -> None:
    full = [Made(method="full", rank=None, labels=(("rank", rank),)) for rank in (8, 32)]
    write_study(roots, "s", full)
    runs, _ = table.read_rows(roots, "s", stale)
    found = table.cells(roots, "s", runs)
    assert (len(runs), list(found["label.rank"])) == (1, ["8", "32"])
    assert found["answer_loss_nats"].notna().all()


def test_items_curves_and_costs(roots: Roots) -> None:
    ids = write_study(roots, "s", [Made(seed=0), Made(seed=1)])
    items = table.items(roots, ids, "answer_loss")
    assert (len(items), set(items["id"])) == (40, set(ids))
    curves = table.curves(roots, ids)
    assert set(curves["metric"]) == {"loss_nats", "lr", "grad_norm", "answer_tokens", "answer_loss_nats",
                                     "validation_answer_loss_nats"}  # fmt: skip
    one = curves[(curves["id"] == ids[0]) & (curves["metric"] == "answer_loss_nats")]
    assert (list(one["step"]), set(one["task"]), set(one["kind"])) == ([0, 10, 20, 30, 40], {"answer_loss"}, {"eval"})
    assert set(table.curves(roots, ids, ["lr"])["metric"]) == {"lr"}
    path = folder_of(roots, ids[1]).timing  # resumed after step 3, on a slower machine
    lines.append(path, [{"step": 4, "wall_s": 0.2, "tokens": 800, "tokens_per_s": 4000.0, "peak_rss_gib": 2.0}])
    costs = table.costs(roots, ids)
    assert costs["wall_s"].tolist() == pytest.approx([0.3, 0.5])
    assert costs["tokens"].tolist() == [2400, 3200]
    assert costs["processes"].tolist() == [1, 2]
    with pytest.raises(Corrupted, match=r"missing\.jsonl"):
        table.items(roots, ids, "missing")


def test_a_number_that_was_not_finite_is_nan_and_a_torn_last_line_is_left(roots: Roots) -> None:
    (run,) = write_study(roots, "s", [Made()])
    path = folder_of(roots, run).metrics
    path.write_text('{"kind": "train", "step": 1, "loss_nats": null}\n{"kind": "train", "st')
    found = table.curves(roots, [run])
    assert (len(found), found["value"].isna().all()) == (1, True)
    path.write_text('{"step": 1}\n')
    with pytest.raises(Corrupted, match=r"metrics\.jsonl:1"):
        table.curves(roots, [run])
