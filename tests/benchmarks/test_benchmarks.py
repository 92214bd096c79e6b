"""The benchmarks run, and what they compare is equal: nothing here is timed."""

import json
import sys

import gpu
import passes
import pytest
import step
import sweep
import sweep_arms
import torch

import spectra


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """A grid of three steps of two examples, as `sweep.py --quick` lays it down."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "cache").mkdir()
    specs = sweep.specifications(["dataset=arithmetic", "dataset.max_train_items=40"], 3, 2)
    return folder, specs, sweep.lay_down(folder, specs)


def test_the_ways_of_a_sweep_have_equal_losses(laid):
    """PEFT and our pack over the whole grid, and three of the parts on LoRA and PiSSA, step by step."""
    from ablora.store.roots import Roots
    from ablora.store.run_folder import create

    folder, specs, plan = laid
    roots = Roots(folder / "runs", folder / "studies", folder / "cache")
    runs = [{**run, "id": create(roots, spec).id} for run, spec in zip(plan["runs"], specs)]
    plan = {**plan, "scratch": str(folder), "runs": runs}
    every, record = range(len(runs)), sweep_arms.Record()
    sweep_arms.train_pack(plan, every, record, 1)
    ours = {run: record.runs[run]["losses"] for run in every}
    cached = sweep_arms.Cached(plan)
    arms = {"trainer": every, "loop": (0, 7), "labels": (0, 7), "rows": (0, 7)}
    for arm, chosen in arms.items():
        other = sweep_arms.Record()
        for run in chosen:
            other.begin(run)
            if arm == "trainer":
                sweep_arms.train_by_trainer(plan, cached, run, other)
            else:
                sweep_arms.train_by_loop(plan, cached, run, other, sweep_arms.LOSSES[arm])
        theirs = {run: other.runs[run]["losses"] for run in chosen}
        assert max(sweep.worst({run: ours[run] for run in chosen}, theirs).values()) < 1e-4, arm
    assert ours[0] != ours[7]


def test_a_sweeps_figures_are_those_of_its_rows():
    row = {"wall_s": 8.0, "start_s": 4.0, "step_ms_per_run": 5.0, "cpu_s": 16.0, "start_cpu_s": 8.0,
           "step_cpu_ms_per_run": 10.0}  # fmt: skip
    half = {key: value / 2 for key, value in row.items()}
    figures = sweep.ratios({"trainer, 2 processes": row, "pack, 2 processes": half}, 100)
    assert {value for key, value in figures.items() if "ratio" in key} == {2.0}
    assert sweep.worst({0: [1.0, 2.0]}, {0: [1.0, 1.0]}) == {0: 1.0}


def last_line(capsys, monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    threads = torch.get_num_threads()
    try:
        assert main() == 0
    finally:
        torch.set_num_threads(threads)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_step(capsys, monkeypatch):
    small = ["--widths", "64", "--dropouts", "0,0.05", "--runs", "2", "--layers", "1", "--tokens", "16"]
    found = last_line(capsys, monkeypatch, step.main, *small, "--rounds", "1")
    assert [row["dropout"] for row in found["rows"]] == [0.0, 0.05]
    assert all(row[arm]["ms_per_run"] > 0 for row in found["rows"] for arm in ("bound", "pack", "alone", "peft"))


def test_passes(capsys, monkeypatch):
    for module, name in ((passes.passes, "WORTH"), (passes._product, "WIDE")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that they are put back
    small = ["--shapes", "2x2", "--worths", "0,none", "--wides", "64,512", "--items", "4", "--data", "arithmetic"]
    found = last_line(capsys, monkeypatch, passes.main, *small, "--rounds", "1")["rows"]
    assert [(row["worth"], row["wide"]) for row in found] == [(0, 64), (0, 512), (None, 64), (None, 512)]
    assert all(row["us_per_token"][kind] > 0 for row in found for kind in ("step", "answer_loss"))


def test_spectra(capsys, monkeypatch):
    small = ["--width", "64", "--layers", "1", "--rank", "8", "--threads", "1"]
    found = last_line(capsys, monkeypatch, spectra.main, *small, "--peft", "pissa")["rows"]
    assert set(found) == {*(f"{k}{m}" for k in ("", "together: ") for m in ("pissa", "milora", "goat")), "PEFT pissa"}
    assert found["pissa"]["cache_bytes"] > 0
    assert found["PEFT pissa"]["residual_bytes"] > found["PEFT pissa"]["run_bytes"]


def test_gpu_on_a_cpu(capsys, monkeypatch):
    found = last_line(capsys, monkeypatch, gpu.main, "--tiny")
    assert found["agreement"]["relative_difference"] < 1e-5
    assert [row["adapters"] for row in found["rows"]] == [1, 2]
    assert all("to_peft" in row and "to_alone" in row for row in found["rows"])
