"""A method that ablora does not have, from one YAML in a folder of the user's own to a figure with its name in it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ablora.cli import main
from ablora.store.roots import Roots

NAME = "milora_plus"
YAML = f"""\
# MiLoRA's start with LoRA+'s steps
defaults:
  - init: svd_minor
  - scaling: constant
  - structure: pair
  - update: lora_plus
  - _self_
_target_: ablora.method.lowrank.LowRank
name: {NAME}
"""
SMALL = [
    "train=quick", "train.max_steps=2", "train.warmup_steps=0", "train.batch_size=2", "rank=4",
    "adapter.targets=[q_proj]", "eval.at_start=false", "eval.tasks.generation=null", "eval.tasks.forgetting=null",
    "eval.tasks.validation_answer_loss=null", "eval.tasks.answer_loss.max_items=2", "tracker=off", "cluster.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "method").mkdir()
    (folder / f"method/{NAME}.yaml").write_text(YAML)
    return folder


def test_one_yaml_is_a_method_that_trains_is_collected_and_drawn(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ablora"])
    assert main(["run", "-m", "--config-dir", str(conf), f"method={NAME}", "study=mine", *SMALL]) == 0
    roots = Roots.from_environment()
    (run,) = roots.runs.iterdir()
    spec = json.loads((run / "spec.json").read_text())["spec"]
    assert spec["method"]["name"] == NAME
    assert [spec["method"][axis]["_target_"].split(".")[-1] for axis in ("init", "update")] == ["SvdMinor", "LoraPlus"]
    assert json.loads((run / "result.json").read_text())["step"] == 2
    capsys.readouterr()

    assert main(["collect", "mine"]) == 0
    (table,) = (Path(line) for line in capsys.readouterr().out.split() if line.endswith(".parquet"))
    assert list(pd.read_parquet(table)["method"]) == [NAME]

    assert main(["figures", "mine"]) == 0
    drawn = {Path(line).name: Path(line) for line in capsys.readouterr().out.splitlines()}
    side = json.loads(drawn["result_table.json"].read_text())
    assert [(choice["method"], choice["ids"]) for choice in side["choices"]] == [(NAME, [run.name])]
    assert drawn["result_table.png"].stat().st_size > 5000
    assert NAME in drawn["result_table.csv"].read_text()


def test_a_sweep_file_of_ones_own_is_planned_with_that_method(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (conf / "sweeps").mkdir()
    (conf / "sweeps/ours.yaml").write_text(f"# @package _global_\nsweep:\n  grid:\n    method: [lora, {NAME}]\n")
    assert main(["plan", f"--config-dir={conf}", "+sweeps=ours", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "cells: 2" in told
    assert NAME in told
    assert main(["plan", "+sweeps=ours", *SMALL]) == 2, "it is not ablora's own"
    capsys.readouterr()
    assert main(["plan", "--config-dir", str(tmp_path / "none"), "method=lora"]) == 2
    assert "a folder with method/, sweeps/, ... in it" in capsys.readouterr().err


def test_a_method_that_cannot_be_is_refused_before_anything_is_queued(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ablora"])
    (conf / "method/wrong.yaml").write_text(YAML.replace("pair", "shared_a").replace("constant", "goat_s"))
    assert main(["run", "--config-dir", str(conf), "method=wrong", *SMALL]) == 2
    assert "scaling='GoatS' is not legal" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
