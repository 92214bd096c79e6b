"""Alignment against dense matrices: full gradients by autograd, equivalent ones by a step of the factors themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small import TASKS, run, save_base, small_spec
from torch import Tensor, nn

from ablora.config.compose import Composer, resolve
from ablora.config.loader import open_loader
from ablora.evals._base import Items, Outcome
from ablora.evals._equivalent import Flow, align
from ablora.evals.alignment import Alignment
from ablora.method.attach import Adapted
from ablora.method.export import module_tensors
from ablora.method.factors import expert_products
from ablora.method.structure._base import Factors
from ablora.models.base import Base
from ablora.models.rows import label_losses, lay_out
from ablora.spec import BadInput, EvalSpec
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.tree import build
from presets import method
from tiny import adapt, disturb, llama, made_up

ALIGNMENT = Alignment(split="train", max_items=6)
MIXTURES = {
    "goat": ("structure.experts=4",),
    "goat_shared_expert": (),
    "hydralora": (),
    "moe_riemannian": (),
    "adamole": ("structure.experts=4",),
}


def items(seed: int = 1, count: int = 6) -> Items:
    return Items(cast(Any, None), (), made_up(seed, count))


def adapted_base(*methods, size: float = 0.05, **adapter: Any) -> tuple[Base, Adapted]:
    base = Base(llama(torch.float64), cast(Any, None))
    adapted = adapt(base.model, *methods, compute_dtype="float64", **adapter)
    for member in range(len(methods)):
        disturb(adapted, member, size)
    return base, adapted


def measured(base: Base, adapted: Adapted, given: list[Items]) -> list[Outcome]:
    found = ALIGNMENT.run(base, adapted, given)
    assert all(found)
    return cast(list[Outcome], found)


class Full(nn.Module):
    """y = base(x) + sum_e g_e (W_e x) - start: each expert a dense matrix of its own, at gates that are given.

    The gates' own dependence on x changes gradients of what lies before this layer, and none of W_e.
    """

    def __init__(self, layer: Any, structure: Any, weights: Tensor, start: Tensor, gates: Tensor):
        super().__init__()
        self.base, self.start, self.sqrt = layer.base, start, getattr(structure, "router_gradient", "") == "sqrt"
        self.dense = nn.Parameter(weights)
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        each = torch.einsum("eoi,rti->rteo", self.dense, x)
        g = self.gates
        q = g.sqrt() if self.sqrt else g
        mixed = q[..., None] * each + ((g - q)[..., None] * each.detach())
        return self.base(x) + mixed.sum(-2) - x @ self.start.mT


def step_of_factors(base: Base, adapted: Adapted, given: Items, eps: float) -> dict[str, Tensor]:
    """The products of every expert after a step of gradient descent at rate eps; the factors are as before after it."""
    adapted.clear_gradients()
    label_losses(base.model, lay_out([given.encoded])).mean().backward()
    adapted.hand_out_gradients()
    kept = {name: p.detach().clone() for name, p in adapted.parameters(0).items()}
    with torch.no_grad():
        for p in adapted.parameters(0).values():
            assert p.grad is not None
            p.sub_(eps * p.grad)
    after = {name: expert_products(adapted, 0, name).detach().clone() for name in adapted.modules}
    adapted.write(0, kept)
    adapted.clear_gradients()
    return after


def by_steps(base: Base, adapted: Adapted, given: Items, eps: float = 1e-3) -> dict[str, Tensor]:
    """-(P(eps) - P(-eps)) / 2 eps: a product is quadratic in eps, so nothing but rounding is left out."""
    ahead, back = (step_of_factors(base, adapted, given, e) for e in (eps, -eps))
    return {name: (back[name] - ahead[name]) / (2 * eps) for name in ahead}


def agrees(found: Outcome, full: dict[str, Tensor], equivalent: dict[str, Tensor]) -> None:
    for record in (r for r in found.records if r["item"] in full):
        G, E = full[record["item"]].flatten(), equivalent[record["item"]].flatten()
        assert record["gradient_norm"] == pytest.approx(G.norm().item(), rel=1e-8)
        assert record["norm_ratio"] == pytest.approx((E.norm() / G.norm()).item(), rel=1e-6)
        assert record["cosine"] == pytest.approx((E @ G / (E.norm() * G.norm())).item(), abs=1e-6)
    for key in ("cosine", "norm_ratio"):
        mean = sum(r[key] for r in found.records) / len(found.records)
        assert found.metrics[f"alignment_{key}"] == pytest.approx(mean)


def merged_gradients(base: Base, adapted: Adapted, given: Items) -> dict[str, Tensor]:
    """dL/dW of a plain model whose weights are W0 + dW."""
    plain, structure = llama(torch.float64), cast(Any, adapted.members[0].method).structure
    for name, layer in adapted.modules.items():
        with torch.no_grad():
            plain.get_submodule(name).weight.copy_(  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
                structure.merge(layer.base.weight.detach(), *module_tensors(adapted, 0, name))
            )
    label_losses(plain, lay_out([given.encoded])).mean().backward()
    return {name: cast(Tensor, plain.get_submodule(name).weight.grad) for name in adapted.modules}


@pytest.mark.parametrize("preset", ["lora", "pissa", "lora_fa", "rslora", "riemannian_lora"])
def test_a_pair_agrees_with_the_gradients_of_merged_weights(preset):
    base, adapted = adapted_base(method(preset))
    (found,) = measured(base, adapted, [items()])
    assert [r["item"] for r in found.records] == list(adapted.modules)
    agrees(found, merged_gradients(base, adapted, items()), by_steps(base, adapted, items()))


def test_at_the_start_of_lora_only_the_step_of_b_counts():
    """B = 0: E = s^2 G A^T A, and LoRA-FA is no other method yet."""
    found = [measured(*adapted_base(method(p), size=0.0), [items()])[0] for p in ("lora", "lora_fa")]
    assert found[0] == found[1]
    assert 0 < found[0].metrics["alignment_cosine"] < 1


def through_dense(base: Base, adapted: Adapted, given: Items) -> dict[str, Tensor]:
    """dL/dW_e of the mixture of full matrices where it equals the adapted model; one module in three, one at a
    time, so that routers further on still answer to what goes through it."""
    out = {}
    structure = cast(Any, adapted.members[0].method).structure
    rows = lay_out([given.encoded])
    adapted.state.per_token = True
    with torch.no_grad():
        label_losses(base.model, rows)
    adapted.state.per_token = False
    gates = {name: cast(Tensor, stats["weights"]).detach()[None] for name, stats in adapted.stats(0).items()}
    for name, layer in list(adapted.modules.items())[::3]:
        x: list[Tensor] = []
        hook = cast(Any, layer).register_forward_hook(lambda _, args, y, x=x: x.extend((args[0].detach(), y.detach())))
        with torch.no_grad():
            label_losses(base.model, rows)
        hook.remove()
        dense = expert_products(adapted, 0, name).detach()
        full = Full(layer, structure, dense, torch.zeros_like(dense[0]), gates[name])
        with torch.no_grad():  # what the start takes away is linear in x: solved for, not written down again
            full.start = torch.linalg.lstsq(x[0][0], full(x[0])[0] - x[1][0]).solution.mT
            assert torch.allclose(full(x[0]), x[1], atol=1e-10)
        base.model.set_submodule(name, full)
        label_losses(base.model, rows).mean().backward()
        base.model.set_submodule(name, layer)
        out[name] = cast(Tensor, full.dense.grad)
        adapted.clear_gradients()
    return out


@pytest.mark.parametrize("preset", MIXTURES)
def test_a_mixture_agrees_with_a_mixture_of_full_matrices(preset):
    base, adapted = adapted_base(method(preset, *MIXTURES[preset]))
    (found,) = measured(base, adapted, [items()])
    full = through_dense(base, adapted, items())
    assert len(full) == 5
    agrees(found, full, by_steps(base, adapted, items()))


def test_one_expert_is_a_pair():
    """And a square orthogonal A under s = 1 is full fine-tuning itself; without a gradient there are zeros."""
    g = torch.Generator().manual_seed(3)
    draw = {"x": (9, 5), "delta": (9, 7), "A": (2, 5), "B": (2, 7)}
    t = {k: torch.randn(*shape, generator=g, dtype=torch.float64) for k, shape in draw.items()}
    scale = torch.full((2,), 0.7)
    flow = Flow(t["x"], t["delta"], torch.ones(9, 1))
    pair = Factors({"A": t["A"], "B": t["B"]}, {"scale": scale})
    mixture = pair._replace(frozen={"scale": scale, "members": torch.ones(2, 1)})
    both = frozenset({"A", "B"})
    assert align(flow, pair, both) == align(flow, mixture, both)
    square = pair._replace(params={"A": torch.eye(5).double(), "B": torch.zeros(5, 7)}, frozen={"scale": torch.ones(5)})
    found = align(flow, square, both)
    assert found.cosine == pytest.approx(1, rel=1e-12), "A A^T = 1 and s = 1: full fine-tuning itself"
    assert found.norm_ratio == pytest.approx(1, rel=1e-12)
    assert align(flow._replace(delta=torch.zeros(9, 7)), pair, both) == (0, 0, 0)


def test_a_pack_equals_its_members_alone():
    """Beside a longer row, more experts, a method without an outcome and one that holds A."""
    methods = [method("lora"), method("goat", "structure.experts=4"), method("goat"), method("dora"), method("lora_fa")]
    given = [items(seed, count) for seed, count in ((1, 2), (2, 6), (3, 4), (4, 3), (5, 5))]
    base, adapted = adapted_base(*methods)
    found = ALIGNMENT.run(base, adapted, given)
    assert found[3] is None
    for i in (0, 1, 2, 4):
        (alone,) = measured(*adapted_base(methods[i]), [given[i]])
        together = cast(Outcome, found[i])
        assert together.metrics == pytest.approx(alone.metrics, rel=1e-9)
        for a, b in zip(alone.records, together.records, strict=True):
            assert a.pop("item") == b.pop("item")
            assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("preset", ["adalora", "dora"])
def test_other_structures_have_no_outcome(preset):
    base, adapted = adapted_base(method(preset))
    assert ALIGNMENT.run(base, adapted, [items()]) == [None]


def test_nothing_is_left_behind():
    base, adapted = adapted_base(method("goat"), method("lora"))
    label_losses(base.model, lay_out([items().encoded] * 2)).mean().backward()
    stacks = [cast(Any, group.stack) for layer in adapted.modules.values() for group in layer.groups]
    leaves = [leaf for stack in stacks for leaf in stack.leaves.values()]
    before = [(leaf.detach().clone(), cast(Tensor, leaf.grad).clone()) for leaf in leaves]
    with torch.no_grad():  # as the loop evaluates
        measured(base, adapted, [items(), items()])
    for leaf, (value, grad) in zip(leaves, before, strict=True):
        assert torch.equal(leaf, value)
        assert torch.equal(cast(Tensor, leaf.grad), grad)
    for parameter in (p for layer in adapted.modules.values() for p in layer.base.parameters()):
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert adapted.state.real is None
    assert not adapted.state.per_token
    assert not any(layer._forward_hooks for layer in adapted.modules.values())


def test_it_is_recorded_along_training_and_changes_nothing(tmp_path: Path):
    base = save_base(tmp_path / "base")
    finals = []
    for name, added in (("without", {}), ("with", {"alignment": ALIGNMENT})):
        tasks = {"answer_loss": TASKS["answer_loss"], **added}
        chosen = EvalSpec(tasks=tasks, every=4)
        specs = [replace(small_spec(base, p, seed=i), eval=chosen) for i, p in enumerate(("lora", "goat"))]
        folders = run(Roots(tmp_path / name, tmp_path / "studies", tmp_path / "cache"), *specs)
        finals.append([f.read_result()["metrics"]["answer_loss_nats"] for f in folders])
    assert finals[0] == finals[1]
    for folder in folders:
        found = [r for r in lines.read(folder.metrics) if r.get("task") == "alignment"]
        assert [r["step"] for r in found] == [0, 4, 8]
        assert found[0]["metrics"] != found[2]["metrics"]
        records = list(lines.read(folder.items("alignment")))
        assert {r["item"] for r in records} == set(folder.read_result()["modules"])
        assert all(r.keys() == {"item", "step", "cosine", "norm_ratio", "gradient_norm"} for r in records)


def test_the_file_that_switches_it_on():
    with open_loader() as loader:
        composed = resolve(Composer(loader).base(["eval=with_alignment"]))["eval"]
        default = resolve(Composer(loader).base([]))["eval"]
    assert build(composed["tasks"].pop("alignment")) == Alignment(split="train", max_items=8)
    assert composed == default


def test_a_wrong_number_of_items_is_refused():
    with pytest.raises(BadInput, match="max_items"):
        Alignment(split="train", max_items=0)
