"""AdaLoRA: its budget, what stays, what the penalty is, and other starts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ablora.method.attach import attach
from ablora.method.member import Member
from ablora.method.structure._allocation import Schedule, keep, scores
from ablora.method.structure._base import Factors
from ablora.method.structure.adalora import Adalora
from ablora.models.segments import packed_logits
from ablora.spec import AdapterSpec, BadInput
from ablora.spectra.library import Library
from presets import method
from tiny import adapt, disturb, ids, llama, logits


def adalora(*overrides: str) -> Adalora:
    return method("adalora", *overrides).structure


def schedule(warmup: float = 0.1, settle: float = 0.3, every: int = 1, final_mask: str = "forced") -> Schedule:
    return Schedule(warmup=warmup, settle=settle, every=every, final_mask=final_mask)  # type: ignore[arg-type]


@given(
    shares=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).filter(lambda s: sum(s) < 0.999),
    steps=st.integers(1, 300),
    ranks=st.tuples(st.integers(1, 500), st.integers(1, 500)).map(sorted),
)
def test_o3_the_budget_falls_from_b_0_at_t_i_to_b_t_at_the_end(shares, steps, ranks):
    (target, full), plan = ranks, schedule(*shares)
    begin, end = plan.begin(steps), plan.end(steps)
    budgets = [plan.budget(t, steps, full, target) for t in range(steps + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert all(target <= b <= full for b in budgets)
    assert budgets[min(begin, end - 1)] == full or end <= begin
    assert set(budgets[end:]) == {target}


def test_when_directions_are_chosen():
    """T - t_f = 15 is no multiple of 2: forced there, or left to the steps after it."""
    forced, scheduled = schedule(0.2, 0.25, 2), schedule(0.2, 0.25, 2, "scheduled")
    assert [t for t in range(1, 21) if forced.prunes(t, 20)] == [6, 8, 10, 12, 14, 15]
    assert [t for t in range(1, 21) if scheduled.prunes(t, 20)] == [6, 8, 10, 12, 14]


def test_exactly_the_budget_stays_with_equal_scores_too():
    found = {"a": torch.tensor([2.0, 0.0, 0.0]), "b": torch.tensor([0.0, 0.0, 1.0])}
    for budget in range(7):
        stays = keep(found, budget)
        assert torch.cat(list(stays.values())).sum() == budget
    assert {k: v.tolist() for k, v in keep(found, 2).items()} == {"a": [True, False, False], "b": [False, False, True]}


def made(scale: dict[str, float], rank: int = 4, started: bool = True) -> dict[str, Factors]:
    """Modules whose gradients have given sizes; directions differ by their number."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for name, size in scale.items():
        params = {"A": torch.randn(rank, 6, generator=g), "B": torch.randn(rank, 5, generator=g)}
        params["E"] = torch.rand(rank, 1, generator=g) + 1
        for tensor in params.values():
            tensor.requires_grad_()
            weight = torch.arange(1.0, rank + 1)[:, None]
            tensor.grad = size * weight * torch.rand(tensor.shape, generator=g)
        frozen = {"scale": torch.ones(rank), "present": torch.ones(rank)}
        if started:
            frozen |= {"A0": params["A"].detach().clone(), "B0": params["B"].detach().clone()}
        out[name] = Factors(params, frozen)
    return out


def strengths(modules: dict[str, Factors]) -> Tensor:
    offsets = {name: 0 if "A0" in f.frozen else 1 for name, f in modules.items()}
    return torch.cat([f.params["E"].detach()[:, 0] + offsets[name] for name, f in modules.items()])


def tremble(modules: dict[str, Factors], step: int) -> None:
    """What an optimizer does: every E moves, zeroed ones too; gradients change, or nothing would be uncertain."""
    for factors in modules.values():
        with torch.no_grad():
            factors.params["E"].add_(0.01)
        for tensor in factors.params.values():
            assert tensor.grad is not None
            tensor.grad.mul_(1.5 if step % 2 else 0.6)


@pytest.mark.parametrize("final_mask", ["forced", "scheduled"])
@pytest.mark.parametrize("started", [True, False])
def test_o3_what_is_pruned_at_the_end_stays_pruned_also_a_whole_module(final_mask, started):
    structure = adalora(
        "structure.target_rank=2", "structure.schedule.every=5", f"structure.schedule.final_mask={final_mask}"
    )
    modules, state, steps = made({"a": 1.0, "b": 1e-6}, started=started), {}, 20
    seen = []
    for step in range(1, steps + 1):
        tremble(modules, step)
        structure.after_step(modules, state, step, steps)
        seen.append(strengths(modules) != 0)
    end = structure.schedule.end(steps)
    assert end == 14
    assert [int(s.sum()) for s in seen[:4]] == [8] * 4
    assert int(seen[4].sum()) < 8
    assert bool(seen[5].all()), "between prunings a zeroed direction grows again"
    settled = end if final_mask == "forced" else end + 1
    assert bool(seen[end - 2].all())
    assert bool(seen[end - 1].all()) == (final_mask == "scheduled")
    for mask in seen[settled - 1 :]:
        assert mask.tolist() == [True] * 4 + [False] * 4
    merged = structure.merge(torch.ones(5, 6), *modules["b"])
    assert torch.equal(merged, torch.ones(5, 6)), "a module without directions is the base"
    assert sorted(state) == ["a.stays", "b.stays"], "checkpoints keep what is still needed"


def test_the_highest_scores_stay_by_a_sum_written_out():
    structure = adalora(
        "structure.target_rank=2", "structure.schedule.warmup=0", "structure.schedule.settle=0", "structure.beta1=0.6"
    )
    modules, state = made({"a": 1.0, "b": 0.7}), {}
    mean: dict[str, Tensor] = {}
    spread: dict[str, Tensor] = {}
    for step in (1, 2):
        for name, (params, _) in modules.items():
            for role, p in params.items():
                assert p.grad is not None
                now, key = (p * p.grad).abs().detach(), name + role
                mean[key] = 0.6 * mean.get(key, 0 * now) + 0.4 * now
                spread[key] = 0.85 * spread.get(key, 0 * now) + 0.15 * (now - mean[key]).abs()
        expected = torch.cat([sum((mean[n + r] * spread[n + r]).mean(1) for r in "ABE") for n in modules])  # type: ignore[arg-type]
        structure.after_step(modules, state, step, 4)
        found = torch.cat([scores(state, factors.params, name) for name, factors in modules.items()])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        budget = structure.schedule.budget(step, 4, 8, 4)
        found = strengths(modules) != 0
        assert set(expected.topk(budget).indices.tolist()) == set(found.nonzero()[:, 0].tolist())
        tremble(modules, step)


def test_nothing_is_pruned_where_the_target_is_the_rank():
    structure, modules, state = adalora("structure.target_rank=4"), made({"a": 1.0}), {}
    for step in range(1, 11):
        structure.after_step(modules, state, step, 10)
        assert (strengths(modules) != 0).all()


def gradients(adapted, loss: Tensor) -> dict[str, float]:
    """The largest gradient by role."""
    adapted.clear_gradients()
    loss.backward()
    adapted.hand_out_gradients()
    found: dict[str, float] = {}
    for name, p in adapted.parameters(0).items():
        role = name.rpartition(".")[2]
        found[role] = max(found.get(role, 0.0), 0.0 if p.grad is None else p.grad.abs().max().item())
    return found


@pytest.mark.parametrize("init", ["gaussian_both", "zero_b", "svd_principal", "svd_minor"])
def test_g1_something_learns_from_every_start(init):
    """A zero e has a gradient and its factors have none; from LoRA's start B alone has one."""
    model = llama()
    adapted = adapt(model, method("adalora", f"init={init}"))
    found = gradients(adapted, packed_logits(model, ids(), [[64]]).float().logsumexp(-1).sum())
    moving = {role for role, size in found.items() if size > 0}
    assert moving == ({"B"} if init == "zero_b" else {"E"})
    packed_logits(model, ids(), [[64]])
    penalty = adapted.penalty(0)
    assert penalty is not None
    pulled = {role for role, size in gradients(adapted, penalty).items() if size > 0}
    assert pulled == ({"A"} if init == "zero_b" else {"A", "B"})


def test_from_lora_s_start_it_is_lora_until_e_moves():
    model, other = llama(), llama()
    ada = adapt(model, method("adalora", "init=zero_b"))
    lora = adapt(other, method("lora"))
    with torch.no_grad():
        for name, p in lora.parameters(0).items():
            p.add_(1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
            ada.write(0, {name: p})
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-6, atol=1e-6)


def penalty_of(model, adapted, member: int = 0) -> Tensor:
    packed_logits(model, ids(len(adapted.members)), [[64]] * len(adapted.members))
    penalty = adapted.penalty(member)
    assert penalty is not None
    return penalty


@pytest.mark.parametrize("convention", ["squared_sum", "norm_mean"])
def test_the_penalty_over_modules_and_padded_ranks(convention):
    chosen = method("adalora", f"structure.orthogonality.convention={convention}")
    model = llama()
    adapted = adapt(model, chosen, rank=4)
    disturb(adapted, size=0.2)
    distances = torch.stack([
        torch.stack([(p[r] @ p[r].mT - torch.eye(4)).square().sum().sqrt() for r in "AB"])
        for p, _ in adapted.factors(0).values()
    ])  # fmt: skip
    expected = 0.1 * (distances.square().sum() if convention == "squared_sum" else distances.mean())
    torch.testing.assert_close(penalty_of(model, adapted), expected, rtol=1e-5, atol=1e-6)
    other, spec = llama(), AdapterSpec()
    beside = attach(other, [Member(chosen, 16, spec, 1), Member(chosen, 4, spec, 0)], Library(None))
    beside.write(1, {k: v.clone() for k, v in adapted.parameters(0).items()})
    torch.testing.assert_close(penalty_of(other, beside, 1), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(BadInput, match=r"rank=8 .*target_rank \(12\)"):
        adapt(llama(), method("adalora", "structure.target_rank=12"))
    with pytest.raises(BadInput, match=r"settle=0.5.*below 1 - warmup \(0.4\)"):
        method("adalora", "structure.schedule.warmup=0.6", "structure.schedule.settle=0.5")
    with pytest.raises(BadInput, match="beta1=1"):
        method("adalora", "structure.beta1=1.0")
    assert [adalora().target(r) for r in (1, 4, 8, 12, 16)] == [1, 2, 5, 8, 10]
