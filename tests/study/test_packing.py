"""Which runs train together, in what order, and how large packs become."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablora.config import ask
from ablora.spec import BadInput, RunSpec, run_id
from ablora.store.claims import release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora.study.execution import execution_of
from ablora.study.manifest import Row
from ablora.study.packing import Packing, packs_of, shared, whys
from ablora.study.reconcile import reconcile
from ablora.tree import build


def asked(*arguments: str) -> dict[str, RunSpec]:
    cells = ask(["train=quick", *arguments], multirun=True).cells
    specs = [build(cell.tree, RunSpec) for cell in cells]
    return {run_id(spec): spec for spec in specs}


@pytest.fixture(scope="module")
def specs() -> dict[str, RunSpec]:
    """Fourteen runs: pairs, mixtures and one that trains the base's own weights, in mixed order."""
    return asked("method=lora,goat,pissa,full", "rank=8,16", "seed=0,1")


def test_every_run_is_in_one_pack_and_none_is_over_the_limit(specs):
    packs = packs_of(specs, Packing(runs=5))
    assert sorted(run for pack in packs for run in pack) == sorted(specs)
    assert max(map(len, packs)) <= 5


def test_packs_are_even(specs):
    shareable = {run: spec for run, spec in specs.items() if spec.method.packs}
    assert sorted(map(len, packs_of(shareable, Packing(runs=8)))) == [6, 6]
    assert sorted(map(len, packs_of(shareable, Packing(runs=5)))) == [4, 4, 4]


def test_what_trains_the_base_has_a_pack_of_its_own(specs):
    for pack in packs_of(specs, Packing(runs=8)):
        assert len(pack) == 1 or all(specs[run].method.packs for run in pack)


def test_runs_of_one_structure_are_neighbours(specs):
    (pack,) = packs_of({run: s for run, s in specs.items() if s.method.packs}, Packing(runs=99))
    structures = [specs[run].method.structure.group() for run in pack]
    changes = sum(a != b for a, b in pairwise(structures))
    assert changes == len(set(structures)) - 1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("adapter.targets=[q_proj]", "adapter.targets"),
        ("adapter.compute_dtype=float64", "adapter.compute_dtype"),
        ("model.dtype=bfloat16", "model"),
        ("eval.tasks.answer_loss.max_items=3", "eval.tasks"),
    ],
)
def test_runs_that_cannot_share_a_pass_are_apart_and_the_plan_says_why(override, named):
    both = {**asked("seed=0,1"), **asked("seed=0,1", override)}
    assert len(packs_of(both, Packing(runs=8))) == 2
    assert any(named in line for line in whys(both))


def test_runs_that_differ_in_training_alone_share_a_pack():
    specs = {**asked("train.lr=1e-3,1e-4", "seed=0,1"), **asked("train.batch_size=2", "dataset=stdlib_choice")}
    same_tasks = {shared(spec) for spec in specs.values()}
    assert len(packs_of(specs, Packing(runs=8))) == len(same_tasks)
    assert whys(asked("train.lr=1e-3,1e-4", "adapter.dropout=0,0.1")) == []


def test_no_place_to_run_is_left_without_a_pack(specs):
    pairs = {run: spec for run, spec in specs.items() if spec.method.name == "lora"}
    assert sorted(map(len, packs_of(pairs, Packing(runs=8), places=2))) == [2, 2]
    assert list(map(len, packs_of(pairs, Packing(runs=8), places=1))) == [4]


def test_packs_are_halved_until_they_fit(specs):
    pairs = {run: spec for run, spec in specs.items() if spec.method.name == "lora"}

    def gib(pack: Any) -> int:
        return len(pack) * 2**30

    fitting = packs_of(pairs, Packing(runs=8, limit_gib=2.5), peak=gib)
    assert list(map(len, fitting)) == [2, 2]
    alone = packs_of(pairs, Packing(runs=8, limit_gib=0.5), peak=gib)
    assert list(map(len, alone)) == [1, 1, 1, 1], "a run that does not fit is still planned: it may"


def test_one_at_a_time(specs):
    assert packs_of(specs, Packing(runs=1)) == [[run] for run in specs]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 11), unique=True), st.integers(1, 9), st.integers(1, 4))
def test_packing_neither_loses_nor_repeats(specs, chosen, most, places):
    every = list(specs.items())
    some = dict(every[i] for i in chosen)
    packs = packs_of(some, Packing(runs=most), places)
    assert sorted(run for pack in packs for run in pack) == sorted(some)
    assert all(0 < len(pack) <= most for pack in packs)
    assert packs == packs_of(some, Packing(runs=most), places)


@pytest.mark.parametrize(("pack", "memory"), [(0, {}), (8, {"limit_gib": 0}), (8, {"limit": 3})])
def test_illegal_packing_is_refused(pack, memory):
    tree = {"tracker": {"kind": "off"}, "cluster": {"_target_": "ablora.dispatch.inline.Inline"}}
    with pytest.raises(BadInput, match=r"pack|memory"):
        execution_of({**tree, "pack": pack, "memory": memory})


def test_ids_know_nothing_of_packs():
    assert asked("seed=0,1").keys() == asked("seed=0,1", "pack=3", "memory.limit_gib=1").keys()
    with pytest.raises(BadInput, match="one value for the whole study"):
        ask(["train=quick", "pack=1,2"], multirun=True)


def test_a_changed_rank_changes_no_compatibility():
    (spec,) = asked("seed=0").values()
    assert shared(spec) == shared(replace(spec, rank=spec.rank + 1, seed=9))


def test_a_pack_whose_process_died_is_sent_in_parts(tmp_path):
    roots = Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")
    rows = [Row(f"{i:012x}", {"seed": i}, "lora", 0) for i in range(8)]
    folders = [folder_of(roots, row.id) for row in rows]
    sizes = []
    for folder in folders:
        folder.path.mkdir(parents=True)
    for _ in range(5):
        sizes.append([len(pack) for pack in reconcile(roots, rows).packs])
        for folder in folders:
            claim = take(folder)
            assert claim is not None
            owner = folder.path / f"claim.{claim.generation}.json"
            owner.write_text(json.dumps({**json.loads(owner.read_text()), "started": "1"}))
    assert sizes == [[8], [4, 4], [2] * 4, [1] * 8, [1] * 8]


def test_a_stop_is_no_death(tmp_path):
    roots = Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")
    rows = [Row(f"{i:012x}", {"seed": i}, "lora", 0) for i in range(4)]
    for row in rows:
        folder_of(roots, row.id).path.mkdir(parents=True)
        claim = take(folder_of(roots, row.id))
        assert claim is not None
        release(claim)
    assert [len(pack) for pack in reconcile(roots, rows).packs] == [4]
