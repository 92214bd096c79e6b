"""Experts that learn as if gated by the root of their gate, against the published form, expert by expert."""

import pytest
import torch
from small_pairs import normal, product
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.member import Member
from ablora.method.structure._base import Factors
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from presets import method
from tiny import disturb

SGD = torch.optim.SGD


class Mixture:
    """One layer with a mixture in float64, started away from zero or with B at random."""

    def __init__(self, preset: str, *overrides: str):
        self.layer = nn.Sequential(nn.Linear(10, 14, bias=False, dtype=torch.float64))
        with torch.no_grad():
            self.layer[0].weight.copy_(normal(14, 10, seed=3))
        self.method = method(preset, "structure.experts=4", *overrides)
        member = Member(self.method, 8, AdapterSpec(compute_dtype="float64"), 0)
        self.adapted: Adapted = attach(self.layer, [member], Library(None))
        disturb(self.adapted, size=0.3)

    def gradients(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = x.clone().requires_grad_()
        y = self.layer(x)
        (y * normal(*y.shape, seed=5)).sum().backward()
        self.adapted.hand_out_gradients()
        return y.detach(), {k: p.grad for k, p in self.adapted.parameters(0).items()} | {"x": x.grad}


def surrogate(mixture: Mixture, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The published form, expert by expert: y = base + sum_i ([sqrt g] E_i + (g - [sqrt g]) [E_i]) - start."""
    params, frozen = mixture.adapted.factors(0)["0"]
    p = {role: t.detach().clone().requires_grad_() for role, t in params.items()}
    x = x.clone().requires_grad_()
    base, s, num = mixture.adapted.modules["0"].base, frozen["scale"][0], mixture.method.structure.experts
    top, index = (x @ p["router"].mT).softmax(-1).topk(mixture.method.structure.top_k, dim=-1)
    g = torch.zeros(*x.shape[:-1], num, dtype=x.dtype).scatter(-1, index, top / top.sum(-1, keepdim=True))
    y = base(x)
    for i, (A, B) in enumerate(zip(p["A"].chunk(num), p["B"].chunk(num))):
        E, gate = s * (x @ A.mT) @ B, g[..., i, None]
        root = gate.detach().sqrt()
        y = y + root * E + (gate - root) * E.detach()
    if "A0" in frozen:
        y = y - s / num * (x @ frozen["A0"].mT) @ frozen["B0"]
    (y * normal(*y.shape, seed=5)).sum().backward()
    return y.detach(), {f"0.{role}": t.grad for role, t in p.items()} | {"x": x.grad}


@pytest.mark.parametrize("preset", ["moe_riemannian", "goat"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_r1_the_root_changes_gradients_of_experts_alone(preset, top_k):
    more = [f"structure.top_k={top_k}", "structure.balance.coefficient=0"]
    x = normal(1, 6, 10, seed=1)
    root, plain = (Mixture(preset, *more, f"structure.router_gradient={kind}") for kind in ("sqrt", "plain"))
    (y, grads), (y_plain, grads_plain) = root.gradients(x), plain.gradients(x)
    y_expected, expected = surrogate(root, x)
    torch.testing.assert_close(y, y_plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, y_expected, rtol=1e-12, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-11, msg=name)
        same = torch.allclose(grad, grads_plain[name], rtol=1e-9, atol=1e-11)
        assert same == (top_k == 1 or name.endswith("router")), name


@pytest.mark.parametrize(("preset", "power"), [("riemannian_molora", 2.0), ("moe_riemannian", 1.5)])
def test_r3_how_a_gate_enters_the_move_of_one_token(preset, power):
    """The value of expert i's output moves by g^2 (plain) or g^1.5 (root) of what it would at a gate of 1."""
    x, moved = normal(1, 1, 10, seed=2), {}
    for k in (1, 2):
        mixture = Mixture(preset, f"structure.top_k={k}", "update.delta=1e-12")
        params, frozen = mixture.adapted.factors(0)["0"]
        mixture.gradients(x)
        p = (x[0, 0] @ params["router"].detach().mT).softmax(-1)
        first = int(p.argmax())
        rows = slice(2 * first, 2 * first + 2)
        g = (p[first] / p.topk(k).values.sum()).item()
        before = product(Factors({r: params[r][rows] for r in "AB"}, {"scale": frozen["scale"][rows]}))
        update, roles = mixture.method.update, mixture.adapted.roles(0)
        update.step(SGD(update.groups(roles, 1e-7), lr=1e-7), mixture.adapted.factors(0), 4)
        after = product(Factors({r: params[r][rows] for r in "AB"}, {"scale": frozen["scale"][rows]}))
        moved[k] = g, g * (after - before) @ x[0, 0]
    (one, alone), (g, gated) = moved[1], moved[2]
    assert one == pytest.approx(1.0)
    torch.testing.assert_close(gated, g**power * alone, rtol=1e-4, atol=1e-14)


def test_at_even_gates_the_control_is_the_root_by_sgd():
    """A router of zeros: every gate is 1/k, sqrt(g) is sqrt(k) g, and the control's rate makes up for it."""
    x, after = normal(1, 6, 10, seed=1), {}
    for preset in ("moe_riemannian_sgd", "moe_riemannian_control", "riemannian_molora_sgd"):
        mixture = Mixture(preset)
        mixture.adapted.write(0, {"0.router": torch.zeros(4, 10, dtype=torch.float64)})
        mixture.gradients(x)
        update = mixture.method.update
        update.step(SGD(update.groups(mixture.adapted.roles(0), 1e-2), lr=1e-2), mixture.adapted.factors(0), 4)
        after[preset] = mixture.adapted.parameters(0)
    for role in ("0.A", "0.B", "0.router"):
        root, control, plain = (p[role].detach() for p in after.values())
        torch.testing.assert_close(control, root, rtol=1e-10, atol=1e-12)
        assert torch.allclose(plain, root, rtol=1e-9, atol=1e-12) == (role == "0.router")
