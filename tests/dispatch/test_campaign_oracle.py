"""The judge of the fault campaign: a whole run passes, and each thing that must never be is seen."""

from collections import Counter
from pathlib import Path

import pytest

from ablora.store import atomic, lines
from ablora.store.run_folder import RunFolder
from cluster.campaign_oracle import judge


def life(name: str, start: int, end: int, *more: dict) -> list[dict]:
    return [{"life": name, "start": start}, *({"life": name, "step": s} for s in range(start + 1, end + 1)),
            *({"life": name, **line} for line in more)]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "a")
    made.path.mkdir(parents=True)
    lines.append(made.metrics, [{"kind": "train", "step": step} for step in range(1, 31)])
    atomic.write_json(made.result, {"schema": 1, "id": "a", "step": 30, "metrics": {}, "life": "z"})
    return made


GOOD = [*life("x", 0, 14, {"stop": 14}), *life("y", 14, 27), *life("z", 20, 30, {"finish": 30})]
"""Stopped with a checkpoint at 14, killed after 27, and through."""


def kinds(*arguments, **more) -> list[str]:
    return [violation.kind for violation in judge(*arguments, **more)]


def test_a_whole_run_passes(folder):
    atomic.write_json(folder.path / "failure.0.json", {"class": "bug"})
    assert judge(folder, GOOD, folder.result.read_bytes(), Counter(bug=1)) == []
    assert kinds(folder, GOOD, caused=Counter()) == ["state"], "a failure that nobody caused"
    assert kinds(folder, GOOD, caused=Counter(bug=1, cancelled=1)) == ["state"], "one that was not recorded"
    assert kinds(folder, GOOD, caused=Counter(bug=2), may=frozenset({"bug"})) == []


@pytest.mark.parametrize("steps", [[*range(1, 15), 14, *range(15, 31)], [*range(1, 14), *range(15, 31)],
                                   [*range(1, 14), 15, 14, *range(16, 31)], range(1, 30)])  # fmt: skip
def test_a_step_doubled_left_out_or_out_of_order_is_seen(folder, steps):
    lines.write(folder.metrics, [{"kind": "train", "step": step} for step in steps])
    assert kinds(folder, GOOD) == ["steps"]


def test_two_lives_at_once_are_seen(folder):
    beside = [*GOOD[:-3], {"life": "y", "step": 28}, *GOOD[-3:]]
    assert "twice" in kinds(folder, beside)


def test_training_after_the_finish_is_seen(folder):
    again = [*GOOD, *life("w", 30, 31)]
    assert set(kinds(folder, again)) == {"twice"}


def test_a_result_that_was_written_again_is_seen(folder):
    before = folder.result.read_bytes()
    atomic.write_json(folder.result, {"schema": 1, "id": "a", "step": 30, "metrics": {"loss": 1.0}, "life": "z"})
    assert kinds(folder, GOOD, before) == ["twice"]
    atomic.write_json(folder.result, {"schema": 1, "id": "a", "step": 30, "metrics": {}, "life": "y"})
    assert kinds(folder, GOOD) == ["twice"], "the result of a life that was not the last"


def test_a_lost_run_is_seen(folder):
    before = folder.result.read_bytes()
    folder.result.unlink()
    assert kinds(folder, GOOD) == ["lost"]
    assert "and there was one" in judge(folder, GOOD, before)[0].text


def test_training_again_in_spite_of_a_checkpoint_is_seen(folder):
    from_zero = [*life("x", 0, 14, {"stop": 14}), *life("z", 10, 30, {"finish": 30})]
    assert kinds(folder, from_zero) == ["steps"]
