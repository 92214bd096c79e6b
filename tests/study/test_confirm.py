"""Tune, then confirm: which runs the second stage has, when they are chosen, and what keeps them."""

import json
from pathlib import Path

import pytest

import fake_execute
from ablora.cli import main
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of

pytestmark = pytest.mark.usefixtures("fake")
DEMO = ["+sweeps=demo", "tracker=off", "cluster=inline", "study=s", "dataset=arithmetic"]


def manifest(roots: Roots) -> list[dict]:
    return list(lines.read(roots.studies / "s" / "manifest.jsonl"))


def test_each_arm_is_confirmed_with_fresh_seeds_at_its_best_rate(roots):
    assert main(["run", "-m", *DEMO, "method=lora,pissa"]) == 0
    rows = manifest(roots)
    tuned, confirmed = ([row for row in rows if row["why"] == why] for why in ("tune", "confirm"))
    assert len({row["id"] for row in tuned}) == 8, "two blocks of three rates that share two"
    assert [(row["labels"]["method"], row["labels"]["train.lr"], row["labels"]["seed"]) for row in confirmed] == [
        (method, 0.01, seed) for method in ("lora", "pissa") for seed in (1, 2, 3)
    ]
    assert all(folder_of(roots, row["id"]).result.exists() for row in rows)
    assert len(list(roots.runs.iterdir())) == len({row["id"] for row in rows}), (
        "a candidate that was not chosen has no folder"
    )


def test_the_same_command_again_keeps_what_was_chosen(roots):
    command = ["run", "-m", *DEMO, "method=lora"]
    assert main(command) == 0
    before = manifest(roots)
    assert main(command) == 0
    assert manifest(roots) == before
    assert len(list(roots.runs.glob("*/executed.txt"))) == len({row["id"] for row in before})


def test_resume_confirms_from_the_manifest_alone(roots, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ablora.study.confirm.advance", stop)
        assert main(["run", "-m", *DEMO, "method=lora"]) == 130
    assert {row["why"] for row in manifest(roots)} == {"tune"}
    monkeypatch.setattr("ablora.config.ask", stop)
    assert main(["resume", "s"]) == 0
    assert [row["labels"]["seed"] for row in manifest(roots) if row["why"] == "confirm"] == [1, 2, 3]


def test_an_arm_waits_for_a_run_that_may_end_otherwise_when_tried_again(roots, capsys):
    bug = fake_execute.BUG
    assert main(["run", "-m", *DEMO, "method=lora", f"seed=0,{bug}", "pack=1"]) == 3
    assert "not confirmed: dataset=arithmetic method=lora: 4 tuning runs are not over" in capsys.readouterr().err
    assert {row["why"] for row in manifest(roots)} == {"tune"}


def test_a_diverged_seed_is_no_reason_to_wait_and_does_not_count_as_finished(roots):
    assert main(["run", "-m", *DEMO, "method=lora", f"seed=0,{fake_execute.DIVERGES}"]) == 3
    assert [row["labels"]["train.lr"] for row in manifest(roots) if row["why"] == "confirm"] == [0.01] * 3


def test_a_tuning_seed_cannot_confirm(roots, capsys):
    assert main(["run", "-m", *DEMO, "method=lora", "seed=0,2"]) == 2
    said = capsys.readouterr().err
    assert "sweep.confirm.seeds=[1, 2, 3] is not legal: seeds that tuning does not use (0, 2)" in said
    assert not roots.runs.exists()


def test_an_axis_that_is_not_swept_cannot_be_tuned(roots, capsys):
    assert main(["run", "-m", *DEMO, "method=lora", "sweep.confirm.axis=rank"]) == 2
    legal = "an axis of the grid that is not the seed: dataset, method, train.lr"
    assert f"sweep.confirm.axis='rank' is not legal: {legal}" in capsys.readouterr().err


def test_a_metric_that_no_run_has_is_named(roots, capsys):
    assert main(["run", "-m", *DEMO, "method=lora", "sweep.confirm.metric=accuracy"]) == 2
    assert "a metric of the tuning runs: answer_loss_nats, validation_answer_loss_nats" in capsys.readouterr().err


def test_a_damaged_protocol_is_named(roots, capsys):
    main(["run", "-m", *DEMO, "method=lora"])
    path: Path = roots.studies / "s" / "confirm.json"
    path.write_text(json.dumps({"seeds": [1]}))
    assert main(["resume", "s"]) == 2
    assert "confirm.json" in capsys.readouterr().err


def test_plan_says_what_would_be_confirmed(roots, capsys):
    assert main(["plan", "-m", *DEMO]) == 0
    said = capsys.readouterr().out
    assert "runs: 12 runs" in said
    assert "then confirm: 4 arms at the train.lr of least validation_answer_loss_nats, seeds 1, 2, 3: 12 runs" in said
