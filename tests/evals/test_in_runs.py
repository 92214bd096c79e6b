"""Forgetting and routing in whole runs: when they are recorded, for whom, and after a crash."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from small import TASKS, Interruption, Watcher, outcome, run, save_base, small_spec

from ablora.data.text import HeldOut
from ablora.evals._base import Outcome
from ablora.evals.answer_loss import AnswerLoss
from ablora.evals.forgetting import Forgetting
from ablora.evals.routing import Routing
from ablora.spec import EvalSpec
from ablora.store import lines
from ablora.store.roots import Roots

CACHE = Path(os.environ["ABLORA_CACHE"]) / "in_runs"
ADDED = {
    "forgetting": Forgetting(corpus=HeldOut(), chunk_tokens=48, max_chunks=3),
    "routing": Routing(split="test", max_items=4),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def roots_in(folder) -> Roots:
    """Runs of their own; decompositions are shared, each of them is an fsync."""
    return Roots(folder / "runs", folder / "studies", CACHE)


def spec(base, preset, seed=0, **tasks):
    made = small_spec(base, preset, dropout=0.0, seed=seed)
    chosen = {"answer_loss": TASKS["answer_loss"], **ADDED, **tasks}
    return replace(made, eval=EvalSpec(tasks=chosen, every=4))


@pytest.fixture(scope="module")
def pack(base, tmp_path_factory):
    return run(roots_in(tmp_path_factory.mktemp("pack")), spec(base, "lora"), spec(base, "goat", seed=1))


def test_recorded_at_the_start_on_the_way_and_at_the_end(pack):
    lora, goat = (list(lines.read(folder.metrics)) for folder in pack)
    for records, tasks in ((lora, ["answer_loss", "forgetting"]), (goat, ["answer_loss", "forgetting", "routing"])):
        found = [(r["step"], r["task"]) for r in records if r["kind"] == "eval"]
        assert found == [(step, task) for step in (0, 4, 8) for task in tasks]
    kl = [r["metrics"]["forgetting_kl_nats"] for r in lora if r.get("task") == "forgetting"]
    assert kl[0] == 0
    assert 0 < kl[1] < kl[2]
    assert {r["split"] for r in lora if r.get("task") == "forgetting"} == {"text"}


def test_a_method_without_experts_has_neither_file_nor_metric(pack):
    lora, goat = pack
    assert not lora.items("routing").exists()
    assert {p.name for p in (lora.path / "evals").iterdir()} == {"answer_loss.jsonl", "forgetting.jsonl"}
    records = list(lines.read(goat.items("routing")))
    assert len(records) == len(goat.read_result()["modules"])
    assert all(r["step"] == 8 and len(r["load"]) == 8 for r in records)
    metrics = [folder.read_result()["metrics"] for folder in pack]
    text = {"forgetting_nats", "forgetting_floor_nats", "forgetting_kl_nats", "text_loss_nats", "base_text_loss_nats"}
    assert text | {"top1_agreement"} <= metrics[0].keys(), "without a split in front"
    assert {m for m in metrics[0] if m.startswith("routing")} == set()
    assert {m for m in metrics[1] if m.startswith("routing")} == {
        "routing_balance", "routing_entropy_nats", "routing_top1_margin", "routing_max_load"}  # fmt: skip
    chunks = list(lines.read(lora.items("forgetting")))
    assert [(r["item"], r["tokens"], r["step"]) for r in chunks] == [(r["item"], 47, 8) for r in chunks]
    assert metrics[0]["forgetting_kl_nats"] == pytest.approx(sum(r["kl_nats"] for r in chunks) / (3 * 47))
    assert set(pack[0].read_result()["left_out"]) == {"train", "test"}, "a corpus is no split"


def test_a_pack_s_numbers_are_those_of_the_run_alone(pack, base, tmp_path):
    (alone,) = run(roots_in(tmp_path), spec(base, "goat", seed=1))
    assert alone.id == pack[1].id
    assert alone.read_result()["metrics"] == pytest.approx(pack[1].read_result()["metrics"], rel=1e-3, abs=1e-4)


def test_a_crash_and_a_resume_change_no_bit(base, tmp_path):
    wanted = spec(base, "goat")
    (whole,) = run(roots_in(tmp_path / "whole"), wanted)
    roots = roots_in(tmp_path / "broken")
    with pytest.raises(Interruption):
        run(roots, wanted, watcher=Watcher(crash_after=5))
    (resumed,) = run(roots, wanted)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("when", [4, 8])
def test_a_metric_that_is_no_number_ends_its_run_alone(base, tmp_path, monkeypatch, when):
    real = AnswerLoss.run

    def broken(self, base, adapted, members, kept):
        outcomes = real(self, base, adapted, members, kept)
        steps.append(len(steps) * 4)
        return [Outcome({"answer_loss_nats": float("nan")}, []), outcomes[1]] if steps[-1] == when else outcomes

    steps: list[int] = []
    monkeypatch.setattr(AnswerLoss, "run", broken)
    failed, quiet = run(roots_in(tmp_path), spec(base, "lora"), spec(base, "lora", seed=1))
    assert failed.read_failure()["class"] == "diverged"
    assert f"answer_loss_nats nan in answer_loss at step {when}" in failed.read_failure()["message"]
    assert not failed.result.exists()
    assert quiet.read_result()["step"] == 8
