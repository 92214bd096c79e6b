"""EVA's ranks: which module gets how many directions, and that all else copes with unequal ranks and with none."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablora.method.attach import Adapted, attach
from ablora.method.bound import Alike, at_most
from ablora.method.export import load_adapter, merged_weights, save_adapter
from ablora.method.formula import trained_in
from ablora.method.init._redistribution import share_out
from ablora.method.layer import out_in
from ablora.method.member import Member
from ablora.method.structure._base import Shape
from ablora.method.targets import find_targets
from ablora.models.segments import packed_logits
from ablora.spec import AdapterSpec, BadInput, canonical
from ablora.spectra.library import Library
from ablora.train.calibration import collect
from presets import method
from tiny import adapt, calibrated, disturb, ids, llama, logits, made_up

MODULES = 14
LENGTHS = [20, 31, 13]


def ranks(adapted: Adapted, member: int = 0) -> dict[str, int]:
    return {name: record.rank or 0 for name, record in adapted.records[member].items()}


def absent(adapted: Adapted, member: int = 0) -> list[str]:
    return [name for name, rank in ranks(adapted, member).items() if rank == 0]


@given(
    st.lists(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=5), min_size=1, max_size=5), st.integers(0, 20)
)
def test_the_largest_shares_are_taken_and_of_equal_ones_the_earlier(given_shares, budget):
    shares = {str(i): torch.tensor(sorted(own, reverse=True)) for i, own in enumerate(given_shares)}
    found = share_out(shares, budget)
    order = sorted((-s.item(), int(name)) for name, own in shares.items() for s in own)[:budget]
    assert found == {name: sum(owner == int(name) for _, owner in order) for name in shares}


@pytest.mark.parametrize(("rank", "rho"), list(product([1, 4, 8], [1.5, 2.0])))
def test_o5_ranks_add_up_stay_under_rho_and_s_is_one(rank, rho):
    adapted = adapt(llama(), method("eva", f"init.rho={rho}"), rank=rank)
    found = ranks(adapted)
    assert sum(found.values()) == rank * MODULES
    assert max(found.values()) <= round(rho * rank)
    assert len(set(found.values())) > 1
    for name, record in adapted.records[0].items():
        assert record.scaling == (16 / rank if record.rank else None)
        A = adapted.parameters(0).get(f"{name}.A", torch.zeros(0, 1)).detach()
        assert len(A) == record.rank
        torch.testing.assert_close(A @ A.T, torch.eye(len(A)), rtol=0, atol=1e-5)
        assert record.parameters == len(A) * sum(out_in(adapted.modules[name].base))


def test_rho_1_is_uniform_and_the_same_run_as_before_there_was_rho():
    uniform = method("eva", "init.rho=1.0")
    assert set(ranks(adapt(llama(), uniform)).values()) == {8}
    assert "rho" not in canonical(uniform.init)
    assert canonical(method("eva").init)["rho"] == 2.0
    for rho in (0.5, float("inf")):
        with pytest.raises(BadInput, match=r"rho=.*at least 1"):
            replace(uniform.init, rho=rho)


def test_modules_whose_data_have_fewer_directions_get_fewer():
    """Three answer positions vary in two directions in every module, whatever the rank; uniform ranks are refused."""

    def member(length: int, *overrides: str) -> Member:
        model, item = llama(), made_up(0)[0]
        short = replace(item, answer_start=len(item.input_ids) - length)
        chosen = method("eva", *overrides)
        seen = collect(model, find_targets(model, "all-linear"), chosen.init.statistic(), [short])
        return Member(chosen, 8, AdapterSpec(), 0, seen)

    model = llama()
    adapted = attach(model, [member(3)], Library(None))
    assert set(ranks(adapted).values()) == {2}
    assert torch.equal(logits(model), logits(llama()))
    with pytest.raises(BadInput, match=r"vary in at least 8 .*init.rho=2"):
        attach(llama(), [member(3, "init.rho=1.0")], Library(None))
    with pytest.raises(BadInput, match="vary in some module"):
        attach(llama(), [member(1)], Library(None))


def test_experts_get_blocks_of_one_direction_each():
    mixture = method("lora", "init=activation", "structure=experts", "structure.experts=2")
    adapted = adapt(llama(), mixture, rank=2)
    found = ranks(adapted)
    assert sum(found.values()) == 2 * MODULES
    assert set(found.values()) == {0, 2, 4}
    shared = method("lora", "init=activation", "structure=shared_a", "structure.experts=4")
    adapted = adapt(llama(), shared, rank=4)
    assert sum(ranks(adapted).values()) == 4 * MODULES
    for name, rank in ranks(adapted).items():
        if rank:
            assert len(adapted.parameters(0)[f"{name}.A"]) == rank // 4


@pytest.mark.parametrize("target", ["null", "2"])
def test_adalora_prunes_what_it_was_given(target):
    """Modules that begin with fewer directions than the target are not filled up."""
    chosen = method("adalora", "init=activation", f"structure.target_rank={target}", "structure.schedule.warmup=0.0",
                    "structure.schedule.settle=0.0", "structure.schedule.every=1")  # fmt: skip
    model = llama()
    adapted = adapt(model, chosen, rank=2)
    packed_logits(model, ids(), [[64]]).square().mean().backward()
    adapted.hand_out_gradients()
    factors = adapted.factors(0)
    chosen.after_step(factors, {}, 1, 1)
    stays = {name: int((f.params["E"] != -1).sum()) for name, f in factors.items()}
    aim = {1: 1, 2: 1, 3: 2} if target == "null" else {1: 1, 2: 2, 3: 2}
    assert sum(stays.values()) == sum(aim[rank] for rank in ranks(adapted).values())


@pytest.mark.parametrize("order", [("eva", "lora"), ("lora", "eva", "lora"), ("eva", None, "eva"), ("eva", "goat")])
def test_a_pack_whose_members_adapt_different_modules(order):
    """Each row is what the run alone computes, and gradients are its own; a row without an adapter is the base."""

    def of(name):
        return None if name is None else method(name)

    def member(name, model):
        m = of(name)
        rank = 8 if name == "goat" else 1
        return Member(m, rank, AdapterSpec(), 0, calibrated(model, m, AdapterSpec(), made_up(0)))

    model = llama()
    together = attach(model, [member(name, model) for name in order], Library(None))
    gone = absent(together, order.index("eva"))
    assert len(gone) == 2
    for i in range(len(order)):
        disturb(together, i)
    out = packed_logits(model, ids(len(order)), [LENGTHS] * len(order))
    out.square().mean((1, 2)).sum().backward()
    together.hand_out_gradients()
    for i, name in enumerate(order):
        if name is None:
            torch.testing.assert_close(out[i], logits(llama(), len(order))[i], rtol=1e-5, atol=1e-5)
            assert not together.records[i]
            assert not together.parameters(i)
            continue
        alone_model = llama()
        alone = attach(alone_model, [member(name, alone_model)], Library(None))
        disturb(alone)
        row = packed_logits(alone_model, ids(len(order))[i : i + 1], [LENGTHS])
        row.square().mean((1, 2)).sum().backward()
        alone.hand_out_gradients()
        torch.testing.assert_close(out[i], row[0], rtol=1e-5, atol=1e-5)
        mine, theirs = together.parameters(i), alone.parameters(0)
        assert mine.keys() == theirs.keys()
        assert not any(f"{module}.A" in mine for module in absent(together, i))
        for key in mine:
            torch.testing.assert_close(mine[key].grad, theirs[key].grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("preset", ["eva", "dora", "adalora"])
def test_saved_merged_and_in_pefts_layout(preset, tmp_path):
    """With modules of rank 0, 1 and 2: as saved, as merged and as PEFT loads it, the same function."""
    chosen = method(preset, *(() if preset == "eva" else ("init=activation",)),
                    *(("structure.target_rank=1",) if preset == "adalora" else ()))  # fmt: skip
    model = llama()
    adapted = adapt(model, chosen, rank=1)
    assert set(ranks(adapted).values()) == {0, 1, 2}
    disturb(adapted, size=3e-2)
    wanted = logits(model)
    save_adapter(adapted, 0, tmp_path)

    fresh = llama()
    load_adapter(adapt(fresh, chosen, rank=1, seed=1), 0, tmp_path)
    assert torch.equal(logits(fresh), wanted)

    merged, weights = llama(), merged_weights(adapted, 0)
    assert weights.keys() == adapted.modules.keys() - absent(adapted)
    with torch.no_grad():
        for name, weight in weights.items():
            merged.get_submodule(name).get_parameter("weight").copy_(weight)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=2e-5)

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    own = {name: rank for name, rank in ranks(adapted).items() if rank}
    assert set(config["target_modules"]) == set(own)
    assert {name: config["rank_pattern"].get(name, config["r"]) for name in own} == own
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert len(config["rank_pattern"]) == sum(rank == 2 for rank in own.values()), "patterns name what differs"
    loaded: Any = peft.PeftModel.from_pretrained(llama(), tmp_path)
    with torch.no_grad():
        out = torch.cat([loaded(input_ids=part).logits for part in ids().split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=2e-5)


@given(
    st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=4),
    st.integers(1, 2),
    st.sampled_from(["pair", "dora"]),
)
def test_the_bound_is_the_largest_of_all_redistributions(sides, rank, structure):
    chosen = method("eva", f"structure={structure}")
    shapes = [Shape(m, n, rank) for m, n in sides]
    wanted = max(
        sum(trained_in(chosen, shape._replace(rank=own)) for shape, own in zip(shapes, given_ranks) if own)
        for given_ranks in product(*(range(min(2 * rank, *own) + 1) for own in sides))
        if sum(given_ranks) <= rank * len(sides)
    )
    assert at_most(chosen, [Alike(shape, 1) for shape in shapes]) == wanted


def test_the_bound_counts_blocks_of_experts_and_many_modules():
    chosen = method("lora", "init=activation", "structure=experts", "structure.experts=4")
    adapted = adapt(llama(), chosen, rank=4)
    shapes = [Shape(*out_in(m.base), 4) for m in adapted.modules.values()]
    counted = sum(record.parameters for record in adapted.records[0].values())
    once = at_most(chosen, [Alike(shape, 1) for shape in shapes])
    assert counted <= once
    grouped = [Alike(shape, shapes.count(shape)) for shape in dict.fromkeys(shapes)]
    assert at_most(chosen, grouped) == once
