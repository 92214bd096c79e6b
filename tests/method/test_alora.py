"""ALoRA: which ranks are scored and how, who gives and who gets, when, and what stays as it is."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ablora.method.export import load_adapter, merged_weights, save_adapter
from ablora.method.seeds import generator
from ablora.method.structure._ablation import ablations, choose, scores, shared_out
from ablora.method.structure._base import Shape
from ablora.method.structure._reallocates import Losses, Moved, Variants
from ablora.method.structure.alora import Alora, first_empty
from ablora.models.segments import packed_logits
from ablora.spec import BadInput
from presets import method
from tiny import adapt, disturb, ids, llama, logits

NAN = math.nan


def alora(*overrides: str) -> Alora:
    return method("alora", *overrides).structure


def test_a_round_asks_for_all_for_each_rank_without_and_for_each_alone():
    gates = {"a": torch.tensor([1.0, 0.0, 1.0]), "b": torch.tensor([0.0, 1.0])}
    found = ablations(gates)
    assert torch.cat([found["a"], found["b"]], 1).tolist() == [
        [1, 0, 1, 0, 1],
        [0, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip
    assert gates["a"].tolist() == [1, 0, 1]
    losses = torch.tensor([1.0, 1.5, 0.75, 1.25, 2.0, 3.0, 1.0], dtype=torch.float64)
    own = scores(losses, gates)  # S(M) - S(M without i) + S(i alone), S = - loss
    torch.testing.assert_close(own["a"].tolist(), [-1 + 1.5 - 2, NAN, -1 + 0.75 - 3], equal_nan=True)
    torch.testing.assert_close(own["b"].tolist(), [NAN, -1 + 1.25 - 1], equal_nan=True)


def test_a_choice_by_hand():
    """Of 5 ranks the lowest are a's second and b's only one; c and d lost none, and d has the higher mean."""
    found = {
        "a": torch.tensor([5.0, 0.0, NAN]), "b": torch.tensor([1.0, NAN]),
        "c": torch.tensor([2.0, NAN, NAN]), "d": torch.tensor([4.0, NAN]),
    }  # fmt: skip
    choice = choose(found, 2)
    assert {name: mask.tolist() for name, mask in choice.pruned.items()} == {
        "a": [False, True, False], "b": [True, False], "c": [False] * 3, "d": [False] * 2,
    }  # fmt: skip
    assert choice.granted == {"c": 1, "d": 1}
    assert choose(found, 1).granted == {"b": 0, "c": 0, "d": 1}
    assert choose(found, 4).granted == {"c": 2, "d": 1} or sum(choose(found, 4).granted.values()) < 4


def test_ranks_are_handed_out_in_turns_as_far_as_rows_reach():
    found = {"a": torch.tensor([1.0, NAN]), "b": torch.tensor([NAN, NAN, NAN]), "c": torch.tensor([3.0, NAN, NAN])}
    room = {"a": 1, "b": 3, "c": 2}
    assert [shared_out(n, room, found) for n in (0, 1, 2, 3, 5, 6)] == [
        {"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1}, {"a": 1, "b": 0, "c": 1},
        {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 2}, {"a": 1, "b": 3, "c": 2},
    ]  # fmt: skip


@given(
    modules=st.lists(
        st.lists(st.one_of(st.just(NAN), st.integers(-3, 3).map(float)), min_size=1, max_size=5), min_size=1, max_size=6
    ),
    most=st.integers(1, 12),
)
def test_o4_the_total_stays_and_only_who_loses_nothing_gets(modules, most):
    found = {str(i): torch.tensor(own, dtype=torch.float64) for i, own in enumerate(modules)}
    choice = choose(found, most)
    pruned = {name: int(mask.sum()) for name, mask in choice.pruned.items()}
    count = sum(pruned.values())
    assert sum(choice.granted.values()) == count <= most
    for name, number in choice.granted.items():
        assert pruned[name] == 0
        assert number <= int(found[name].isnan().sum())
    gone = torch.cat([found[name][mask] for name, mask in choice.pruned.items()])
    kept = torch.cat([found[name][~mask & ~found[name].isnan()] for name, mask in choice.pruned.items()])
    assert not gone.isnan().any()
    assert not len(gone) or not len(kept) or gone.max() <= kept.min()


def test_nobody_gives_where_nobody_has_room():
    full = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, 3.0])}
    choice = choose(full, 2)
    assert sum(choice.granted.values()) == 0
    assert not any(mask.any() for mask in choice.pruned.values())
    both = {"a": torch.tensor([1.0, 5.0, NAN]), "b": torch.tensor([0.0, 6.0, NAN])}
    assert choose(both, 2).granted == {"a": 1}, "each would lose one and none could get: one moves"


def test_when_ranks_move():
    structure = alora()
    assert [t for t in range(1, 401) if structure.due(t, 400)] == [40 + 10 * k for k in range(8)]
    assert [t for t in range(1, 6) if structure.due(t, 5)] == [1, 2, 3, 4], "at least a step apart, and never the last"
    assert not any(alora("structure.rounds=0").due(t, 100) for t in range(1, 101))
    late = alora("structure.first=0.9", "structure.every=0.04")
    assert [t for t in range(1, 101) if late.due(t, 100)] == [90, 94, 98]


@pytest.mark.parametrize(
    ("rank", "out", "into", "headroom", "rows"),
    [(8, 32, 48, 2.0, 16), (8, 12, 48, 2.0, 12), (3, 32, 48, 1.5, 4), (3, 32, 48, 1.1, 3), (20, 20, 48, 2.0, 20)],
)
def test_rows_of_a_module(rank, out, into, headroom, rows):
    structure = alora(f"structure.headroom={headroom}")
    assert structure.rows(Shape(out, into, rank)) == rows
    gate = structure.constants(Shape(out, into, rank), torch.empty(out, into))["gate"]
    assert gate.tolist() == [1.0] * rank + [0.0] * (rows - rank)


def test_the_first_empty_rows_are_begun():
    gate = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    assert [first_empty(gate, n).tolist() for n in (0, 1, 2)] == [
        [False] * 5, [False, True, False, False, False], [False, True, False, True, False],
    ]  # fmt: skip


def preferring(order: Tensor) -> Losses:
    """Losses by which living rank i has the score order[i]."""

    def losses(variants: Variants) -> Tensor:
        total = len(next(iter(variants.values()))["gate"]) // 2
        return torch.cat([torch.zeros(1), order[:total], torch.zeros(total)]).double()

    return losses


def move(adapted, seed: int = 0) -> Moved:
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
    factors = adapted.factors(0)
    structure = adapted.members[0].method.structure
    return structure.reallocate(factors, preferring(order), lambda name: generator(seed, name))


@pytest.mark.parametrize("init", ["zero_b", "svd_principal"])
@pytest.mark.parametrize("update", ["plain", "freeze_a"])
def test_o4_the_function_changes_by_what_is_pruned_alone(init, update):
    model, other = llama(), llama()
    wanted = method("alora", f"init={init}", f"update={update}")
    adapted, masked = adapt(model, wanted), adapt(other, wanted)
    disturb(adapted)
    for round_ in range(3):
        before = {name: f.frozen["gate"].clone() for name, f in adapted.factors(0).items()}
        masked.write(0, {k: t.detach().clone() for k, t in {**adapted.parameters(0), **adapted.constants(0)}.items()})
        moved = move(adapted, round_)
        assert moved.ranks == len(adapted.modules)
        for name, (params, frozen) in adapted.factors(0).items():
            gone = (before[name] == 1) & (frozen["gate"] == 0)
            begun = (before[name] == 0) & (frozen["gate"] == 1)
            assert torch.equal(moved.rewritten.get(name, torch.zeros_like(gone)), gone | begun)
            assert not (gone.any() and begun.any())
            masked.factors(0)[name].frozen["gate"][gone] = 0
            assert not params["B"][begun].any()
            assert not params["A"][gone].any()
            bound = params["A"].shape[1] ** -0.5
            assert ((params["A"][begun].abs() > 0) & (params["A"][begun].abs() < bound)).all()
        assert sum(record.rank or 0 for record in adapted.records[0].values()) == 8 * len(adapted.modules)
        assert torch.equal(logits(model), logits(other))
    with adapted.disabled():
        assert torch.equal(logits(model), logits(llama()))


def test_new_ranks_differ_between_modules_and_are_the_run_s_own():
    first, again = adapt(llama(), method("alora")), adapt(llama(), method("alora"))
    move(first)
    move(again)
    own = {name: f.params["A"][8:] for name, f in first.factors(0).items()}
    assert all(torch.equal(own[name], f.params["A"][8:]) for name, f in again.factors(0).items())
    drawn = [rows[0] for rows in own.values() if rows[0].any()]
    assert len({tuple(row[:4].tolist()) for row in drawn}) == len(drawn) > 2


def test_empty_rows_learn_nothing():
    model = llama()
    adapted = adapt(model, method("alora"))
    disturb(adapted)
    packed_logits(model, ids(), [[64]]).square().mean().backward()
    adapted.hand_out_gradients()
    for params, frozen in adapted.factors(0).values():
        for role in "AB":
            grad = params[role].grad
            assert grad is not None
            assert torch.equal(grad.abs().sum(1) > 0, frozen["gate"] == 1)


def test_with_all_gates_open_it_is_lora():
    model, other = llama(), llama()
    adapted, lora = adapt(model, method("alora")), adapt(other, method("lora"))
    disturb(lora, size=0.1)
    padded = {k: torch.cat([p, torch.ones_like(p)]).detach() for k, p in lora.parameters(0).items()}
    adapted.write(0, padded)  # what stands in empty rows is not seen
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)
    for weight, wanted in zip(merged_weights(adapted, 0).values(), merged_weights(lora, 0).values()):
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", ["zero_b", "svd_principal"])
def test_moved_ranks_are_saved_merged_and_read_by_peft(init, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    model, wanted = llama(), method("alora", f"init={init}", "structure.moves=60")
    adapted = adapt(model, wanted)
    for round_ in range(3):
        disturb(adapted)
        move(adapted, round_)
    disturb(adapted)
    ranks = [record.rank or 0 for record in adapted.records[0].values()]
    assert min(ranks) < 8 < max(ranks)
    assert sum(ranks) == 8 * len(ranks)
    save_adapter(adapted, 0, tmp_path)
    fresh = llama()
    again = adapt(fresh, wanted, seed=1)
    load_adapter(again, 0, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    assert again.records == adapted.records
    plain = llama()
    with torch.no_grad():
        for name, weight in merged_weights(adapted, 0).items():
            plain.get_parameter(f"{name}.weight").copy_(weight)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=2e-5)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    with torch.no_grad():
        out = torch.cat([loaded(input_ids=part).logits for part in ids().split([20, 31, 13], dim=1)], dim=1)
    torch.testing.assert_close(out, logits(model), rtol=1e-5, atol=2e-5)


def test_a_module_that_lost_all_its_ranks_is_the_base_and_no_target_of_peft(tmp_path):
    model = llama()
    adapted = adapt(model, method("alora"))
    disturb(adapted)
    empty, layer = next(iter(adapted.modules.items()))
    adapted.factors(0)[empty].frozen["gate"].zero_()
    x = torch.randn(1, 5, layer.base.weight.shape[1])
    assert torch.equal(layer(x), layer.base(x))
    assert adapted.records[0][empty][1:] == (0, 0)
    assert torch.equal(merged_weights(adapted, 0)[empty], layer.base.weight)
    save_adapter(adapted, 0, tmp_path)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert set(targets) == set(adapted.modules) - {empty}


def test_what_cannot_be_is_refused():
    for field, value in (("headroom", 1), ("first", 1.0), ("every", -0.1), ("moves", 0), ("rounds", -1)):
        with pytest.raises(BadInput, match=f"{field}={value}"):
            alora(f"structure.{field}={value}")
    with pytest.raises(BadInput, match=r"probe.items=0"):
        alora("structure.probe.items=0")
