"""Planning at scale: what cells share is composed, built, checked and read once, and the ids are those of one alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ablora.config import ask, compose
from ablora.data.arithmetic import Arithmetic
from ablora.method import plan as counting
from ablora.models import base
from ablora.spec import BadInput, RunSpec, run_id
from ablora.study.parts import Parts
from ablora.study.plan import make
from ablora.tree import build

GRID = ["method=lora,molora_topk", "train=default,quick", "rank=8,16", "train.lr=1e-3,2e-3,3e-3", "seed=range(4)"]
CELLS, GROUPS = 96, 4
COSTLY = {"composed": (compose, "load"), "weights": (base, "content_of"), "counted": (counting, "count"),
          "files": (Arithmetic, "fingerprint"), "data": (Arithmetic, "load")}  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often what costs time is done."""
    found: Counter[str] = Counter()
    for word, (owner, name) in COSTLY.items():
        monkeypatch.setattr(owner, name, _counted(getattr(owner, name), word, found))
    return found


def _counted(real: Callable, word: str, found: Counter[str]) -> Callable:
    def counted(*args: Any, **kwargs: Any) -> Any:
        found[word] += 1
        return real(*args, **kwargs)

    return counted


def test_no_step_of_planning_is_done_more_often_than_its_parts_differ(calls: Counter[str]):
    plan = make(ask(GRID, multirun=True).cells)
    assert len(plan.specs) == CELLS
    assert calls == {"composed": GROUPS, "weights": 1, "counted": 4, "files": 1, "data": 1}  # 2 methods, 2 ranks


def test_the_ids_are_those_of_cells_built_alone():
    """With dropout and in mixtures the micro-batch is part of the id, elsewhere it is not."""
    cells = ask([*GRID, "adapter.dropout=0,0.1", "train.micro_batch=null,2"], multirun=True).cells
    parts = Parts()
    found = {parts.run_id(parts.spec(cell.tree)) for cell in cells}
    assert found == {run_id(build(cell.tree, RunSpec)) for cell in cells}
    assert len(found) == 2 * CELLS * 3 // 2 + CELLS // 2


def test_a_tree_read_by_itself_shares_parts_that_are_equal():
    parts = Parts()
    trees = [cell.tree for _ in range(2) for cell in ask(["seed=0"], multirun=False).cells]
    assert trees[0]["method"] is not trees[1]["method"]
    first, second = (parts.spec(parts.shared(tree)) for tree in trees)
    assert first.method is second.method
    assert first == second


def test_a_value_of_another_type_is_another_part():
    parts = Parts()
    tree = dict(ask([], multirun=False).cells[0].tree)
    assert parts.spec(parts.shared(tree | {"rank": 1})).rank == 1
    with pytest.raises(BadInput, match=r"rank=True is not legal"):
        parts.spec(parts.shared(tree | {"rank": True}))


def test_references_are_followed_into_the_parts_that_they_read():
    """A part is the same where it and all that it refers to is, and only there."""
    referring = ["train.eps='${train.lr}'", "method.scaling.alpha='${rank}'", "seed='${rank}'",
                 "method.name='${dataset.name}-${train.max_steps}'"]  # fmt: skip
    cells = ask(["rank=4,8", "train.lr=1e-3,2e-3", *referring], multirun=True).cells
    found = [(c.tree["method"]["scaling"]["alpha"], c.tree["train"]["eps"], c.tree["seed"]) for c in cells]
    assert found == [(4, 1e-3, 4), (4, 2e-3, 4), (8, 1e-3, 8), (8, 2e-3, 8)]
    assert cells[0].tree["method"] is cells[1].tree["method"]
    assert cells[0].tree["train"] is cells[2].tree["train"]
    assert {c.tree["method"]["name"] for c in cells} == {"arithmetic-200"}
