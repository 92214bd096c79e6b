"""Updates: what their steps do to the product, and what they leave alone. o1 to r5 name the survey's invariants."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors
from ablora.method.update._gram import Side, precondition
from ablora.spec import BadInput, TrainSpec
from ablora.train.adamw_hf import AdamWHF
from presets import method, names

sys.path.append(str(Path(__file__).parents[1] / "train"))
from packs import pack, spec
from small_pairs import normal, one_pair, product

from tiny import adapt, disturb, llama

SGD = torch.optim.SGD
LR = 1e-3


def take(update, pair: Factors, lr: float = LR, experts: int = 1, optimizer=SGD) -> dict[str, float]:
    groups = update.groups({role: [p] for role, p in pair.params.items() if update.trains(role)}, lr)
    return update.step(optimizer(groups, lr=lr), {"m": pair}, experts)


def onto_rows(A: Tensor) -> Tensor:
    return torch.linalg.pinv(A) @ A


def packed(preset: str, *overrides: str, **train: Any):
    return pack(spec(preset, *overrides, **train))


def riemannian(*overrides: str):
    return method("riemannian_lora", *(f"update.{o}" for o in overrides)).update


@pytest.mark.parametrize("preset", ["lora_plus", "goat", "dora"])
def test_o1_lora_plus_gives_b_and_what_has_one_dimension_the_larger_rate(preset):
    update = method("lora_plus").update
    roles = adapt(llama(), method(preset)).roles(0)
    assert preset != "dora" or "magnitude" in roles
    rates = {id(p): group["lr"] for group in update.groups(roles, LR) for p in group["params"]}
    assert len(rates) == sum(map(len, roles.values()))
    for role, parameters in roles.items():
        expected = 16 * LR if role in ("B", "magnitude") else LR
        assert all(rates[id(p)] == expected for p in parameters), role


def test_o1_a_ratio_of_one_is_plain():
    ratio_1, plain, ratio_16 = (
        packed(*p).steps(4) for p in (("lora_plus", "update.ratio=1"), ("lora",), ("lora_plus",))
    )
    assert ratio_1 == plain != ratio_16


def test_o2_lora_fa_moves_the_product_along_the_full_gradient_on_the_rows_of_a():
    """s g~_B A = G P_rows(A), so a step of SGD moves s B A by lr times that."""
    pair, G = one_pair()
    before, A = product(pair), pair.params["A"].detach().clone()
    take(method("lora_fa").update, pair)
    torch.testing.assert_close(product(pair) - before, -LR * G @ onto_rows(A), rtol=1e-7, atol=1e-12)
    assert torch.equal(pair.params["A"], A)
    plain, _ = one_pair()
    take(method("lora_fa", "update.project=false").update, plain)
    torch.testing.assert_close(product(plain) - before, -LR * 4 * G @ A.mT @ A, rtol=1e-9, atol=1e-12)


def test_o2_every_expert_is_projected_on_its_own_rows_by_its_own_scale():
    pair, _ = one_pair(rank=4)
    pair.frozen["scale"][:2] = 3.0  # gradients stay as given: s = 2 was in both
    grad, A = pair.params["B"].grad.clone(), pair.params["A"].detach()
    take(method("lora_fa").update, pair, experts=2)
    for block, s in ((slice(0, 2), 3.0), (slice(2, 4), 2.0)):
        expected = torch.linalg.solve(A[block] @ A[block].mT, grad[block]) / s**2
        torch.testing.assert_close(pair.params["B"].grad[block], expected, rtol=1e-6, atol=1e-12)


def test_g4_lora_fa_holds_a_bit_for_bit_and_counts_b_alone():
    it = packed("lora_fa")
    before = {k: v.clone() for k, v in it.adapted.constants(0).items() if k.endswith(".A")}
    it.steps(3)
    assert before
    assert all(torch.equal(it.adapted.constants(0)[k], v) for k, v in before.items())
    assert {k.rpartition(".")[2] for k in it.adapted.parameters(0)} == {"B"}
    assert all(r.parameters == 8 * m.base.out_features for r, m in zip(it.adapted.records[0].values(),
                                                                      it.adapted.modules.values()))  # fmt: skip


def test_r2_without_damping_the_product_moves_by_the_projected_gradients():
    pair, G = one_pair()
    s, lr = 2.0, 1e-6
    A, B = pair.params["A"].detach().clone(), pair.params["B"].detach().clone()
    before = product(pair)
    take(riemannian("delta=1e-12"), pair, lr)
    expected = -lr * s**2 * (G @ onto_rows(A) + onto_rows(B) @ G)
    # the second order of the step is lr^2
    torch.testing.assert_close(product(pair) - before, expected, rtol=1e-5, atol=1e-10)


def test_r2_the_move_does_not_depend_on_how_the_product_is_split():
    one, _ = one_pair()
    other, _ = one_pair()
    Q = normal(4, 4, seed=9) + 3 * torch.eye(4, dtype=torch.float64)
    with torch.no_grad():
        other.params["A"].copy_(Q @ one.params["A"])
        other.params["B"].copy_(torch.linalg.inv(Q).mT @ one.params["B"])
    other.params["A"].grad = torch.linalg.inv(Q).mT @ one.params["A"].grad
    other.params["B"].grad = Q @ one.params["B"].grad
    before = product(one)
    torch.testing.assert_close(product(other), before)
    for pair in (one, other):
        take(riemannian("delta=1e-12"), pair, 1e-4)
    torch.testing.assert_close(product(other) - before, product(one) - before, rtol=1e-7, atol=1e-12)


def test_r2_with_much_damping_gradients_are_divided_by_delta():
    pair, _ = one_pair()
    grads = {role: p.grad.clone() for role, p in pair.params.items()}
    take(riemannian("delta=1e9"), pair)
    for role, p in pair.params.items():
        torch.testing.assert_close(p.grad * 1e9, grads[role], rtol=1e-6, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    experts=st.integers(1, 4), size=st.integers(1, 3), delta=st.sampled_from([1e-6, 1e-2, 1.0]), seed=st.integers(0, 99)
)
def test_experts_are_pairs_of_their_own(experts, size, delta, seed):
    rank = experts * size
    grad, partner = normal(rank, 5, seed=seed), normal(rank, 7, seed=seed + 1)
    expected = torch.cat([
        torch.linalg.solve(F @ F.mT + delta * torch.eye(size, dtype=F.dtype), g)
        for F, g in zip(partner.chunk(experts), grad.chunk(experts))
    ])  # fmt: skip
    assert precondition([Side(grad, partner)], experts, delta) == 0
    torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("order", "sees_the_new_a"), [("jacobi", False), ("gauss_seidel", True)])
def test_r4_whose_a_preconditions_b(order, sees_the_new_a):
    pair, _ = one_pair()
    old, grad = pair.params["A"].detach().clone(), pair.params["B"].grad.clone()
    take(riemannian(f"order={order}", "delta=0.5"), pair, lr=0.1)
    A = pair.params["A"].detach() if sees_the_new_a else old
    expected = torch.linalg.solve(A @ A.mT + 0.5 * torch.eye(4, dtype=A.dtype), grad)
    torch.testing.assert_close(pair.params["B"].grad, expected)
    assert not torch.equal(pair.params["A"], old)


def test_r5_nothing_but_a_and_b_is_preconditioned():
    adapted = adapt(llama(), method("riemannian_molora"))
    disturb(adapted)
    given_ = {k: torch.full_like(p, 0.5) for k, p in adapted.parameters(0).items()}
    for name, p in adapted.parameters(0).items():
        p.grad = given_[name].clone()
    update = method("riemannian_molora").update
    constants = {k: t.clone() for k, t in adapted.constants(0).items()}
    weights = {k: t.clone() for k, t in adapted.model.state_dict().items()}
    update.step(SGD(update.groups(adapted.roles(0), LR), lr=LR), adapted.factors(0), 8)
    for name, p in adapted.parameters(0).items():
        assert torch.equal(p.grad, given_[name]) == name.endswith("router"), name
    assert all(torch.equal(t, constants[k]) for k, t in adapted.constants(0).items())
    for k, t in adapted.model.state_dict().items():
        assert torch.equal(t, weights[k]) or ".stack." in k


def test_what_cannot_be_factored_keeps_its_gradient_and_is_counted():
    grad = normal(4, 5)
    partner = normal(4, 6)
    partner[2:] = math.nan
    kept = grad[2:].clone()
    assert precondition([Side(grad, partner)], 2, 1e-6) == 1
    assert torch.equal(grad[2:], kept)
    assert grad.isfinite().all()
    pair, _ = one_pair()
    with torch.no_grad():
        pair.params["A"][0] = math.inf
    assert take(riemannian(), pair) == {"preconditioner_fallbacks": 1.0}
    _, _, reports = _one_update(packed("riemannian_lora"))
    assert reports == {"preconditioner_fallbacks": 0.0}


def _one_update(it):
    for p in it.runs[0].parameters.values():
        p.grad = torch.ones_like(p)
    return it.runs[0].update()


def test_float32_factors_are_solved_in_float64():
    """A condition of 1e6: float32 would lose the small direction."""
    partner = torch.diag(torch.tensor([1.0, 1e-3]))[:, :2] @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    grad = torch.tensor([[0.3], [0.7]])
    exact = torch.linalg.solve(partner.double() @ partner.double().mT + 1e-12 * torch.eye(2).double(), grad.double())
    precondition([Side(grad, partner)], 1, 1e-12)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-6, atol=0.0)


def test_a_router_has_a_rate_of_its_own():
    roles = adapt(llama(), method("riemannian_molora")).roles(0)
    groups = method("riemannian_molora").update.groups(roles, LR)
    rates = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    expected = [(id(p), LR * (0.003 if role == "router" else 1)) for role, own in roles.items() for p in own]
    assert sorted(rates) == sorted(expected)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [("lora_plus", ("init=svd_principal", "scaling=constant")), ("goat", ("update=riemannian", "update.delta=1e-2"))],
    ids=["pissa_with_lora_plus", "riemannian_on_goat"],
)
def test_crossings_learn(preset, overrides):
    it = packed(preset, *overrides)
    before = {k: p.detach().clone() for k, p in it.adapted.parameters(0).items()}
    losses = it.steps(12)[0]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(not torch.equal(p, before[k]) for k, p in it.adapted.parameters(0).items())


def test_heads_on_one_a_are_projected_on_it_and_cannot_be_pairs_of_their_own():
    pair, _ = one_pair(rank=4)
    grad, A = pair.params["B"].grad.clone(), pair.params["A"].detach()[:2]
    update = method("hydralora", "update=freeze_a").update
    shared = Factors({"A": A, "B": pair.params["B"]}, pair.frozen)
    update.step(SGD([pair.params["B"]], lr=LR), {"m": shared}, 2)
    expected = torch.linalg.solve((A @ A.mT).expand(2, 2, 2), grad.unflatten(0, (2, 2))).flatten(0, 1) / 4
    torch.testing.assert_close(pair.params["B"].grad, expected, rtol=1e-6, atol=1e-12)
    with pytest.raises(BadInput, match="shared_a"):
        method("hydralora", "update=riemannian")


@pytest.mark.parametrize("preset", ["riemannian_molora", "moe_riemannian", "lora_fa"])
def test_packed_equals_solo_beside_another_rank(preset):
    """The runs' own views are preconditioned at their true rank; mixtures round otherwise (docs/design.md)."""
    mine, other = spec(preset), spec(preset, rank=16, seed=1)
    alone, together = pack(mine), pack(mine, other)
    one, two = alone.steps(6)[0], together.steps(6)[0]
    assert one == pytest.approx(two, rel=1e-5)


def test_a_resumed_run_has_the_same_bits():
    train = {"optimizer": "adamw_hf", "correct_bias": False, "weight_decay": 0.1}
    through, first, second = (packed("riemannian_lora", "update.order=gauss_seidel", **train) for _ in range(3))
    through.steps(5)
    first.steps(3)
    second.runs[0].load({k: v.clone() for k, v in first.runs[0].state().items()}, first.runs[0].counters())
    second.steps(2)
    for name, p in through.adapted.parameters(0).items():
        assert torch.equal(p, second.adapted.parameters(0)[name]), name


@pytest.mark.parametrize("correct_bias", [True, False])
def test_the_former_adamw_is_its_formula(correct_bias):
    p, m, v = Parameter(normal(3, 4)), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    expected, lr, eps, decay = p.detach().clone(), 1e-2, 1e-3, 0.1
    optimizer = AdamWHF([{"params": [p]}], lr, (0.9, 0.99), eps, decay, correct_bias)
    for t in range(1, 5):
        g = normal(3, 4, seed=t)
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        c = math.sqrt(1 - 0.99**t) / (1 - 0.9**t) if correct_bias else 1.0
        expected = (expected - lr * c * m / (v.sqrt() + eps)) * (1 - lr * decay)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["lr"] == lr


@pytest.mark.parametrize(
    ("preset", "override", "legal"),
    [
        ("lora_plus", "update.ratio=0", "lr of B over lr of A"),
        ("lora_plus", "update.embedding_lr=-1", "a positive number"),
        ("riemannian_lora", "update.delta=0", "1e-6 in the papers"),
        ("riemannian_lora", "update.lr_ratio=0", "a positive number"),
        ("riemannian_lora", "update.order=both", "jacobi"),
        ("goat", "structure.router_gradient=root", "sqrt"),
    ],
)
def test_what_is_not_legal_is_refused(preset, override, legal):
    with pytest.raises(BadInput, match=legal):
        method(preset, override)


def test_only_the_former_adamw_can_leave_its_bias():
    with pytest.raises(BadInput, match="adamw_hf"):
        TrainSpec(lr=1e-3, max_steps=1, batch_size=1, correct_bias=False)


def test_a_preset_whose_rule_is_sgd_says_so_to_the_optimizer():
    from ablora.config.question import ask

    sgd = [name for name in names() if name.endswith("_sgd") or name == "moe_riemannian_control"]
    cells = ask([f"method={','.join(['lora', *sgd])}"], multirun=True).cells
    assert [cell.tree["train"]["optimizer"] for cell in cells] == ["adamw", *["sgd"] * len(sgd)]
    (cell,) = ask([f"method={sgd[0]}", "train.optimizer=adamw"], multirun=False).cells
    assert cell.tree["train"]["optimizer"] == "adamw"
