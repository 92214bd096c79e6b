"""Values of different axes that nobody published together: two steps by the trainer, and what must then be true."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "train"))
from packs import Pack, pack, spec

from ablora.method.export import merged_weights
from ablora.method.structure._displacement import update as update_of
from ablora.models.rows import label_losses, lay_out
from ablora.spec import BadInput
from presets import method
from tiny import llama, logits

LR = 1e-3


def of(preset: str, *overrides: str, **train: Any) -> Pack:
    recipe = {"lr": LR, "schedule": "constant", "clip_norm": None, "max_steps": 2} | train
    return pack(spec(preset, *overrides, **recipe))


def now(it: Pack) -> dict[str, dict[str, Tensor]]:
    """By module and role, parameters and constants."""
    return {
        name: {role: t.detach().clone() for role, t in {**params, **frozen}.items()}
        for name, (params, frozen) in it.adapted.factors(0).items()
    }


def gradients(it: Pack) -> dict[str, Tensor]:
    """Of one step, which is taken, as the update left them: the trainer clears them behind it."""
    found: dict[str, Tensor] = {}
    clear = it.adapted.clear_gradients

    def keep() -> None:
        found.update({name: p.grad.clone() for name, p in it.adapted.parameters(0).items() if p.grad is not None})
        clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(it.adapted, "clear_gradients", keep)
        it.steps(1)
    return found


def near(found: Tensor, expected: Tensor, to: float = 1e-4) -> None:
    size = expected.abs().max().item()
    assert size > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=to * size)


def full_gradients(it: Pack) -> dict[str, Tensor]:
    """dL/dW of the base on the run's first batch."""
    model = llama()
    model.requires_grad_(True)
    label_losses(model, lay_out([it.runs[0].data.batch(1)])).mean().backward()
    return {name.removesuffix(".weight"): p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_goats_scaling_on_plain_lora_steps_by_the_full_gradient_on_the_rows_of_a():
    """The product's first SGD step is -lr s^2 G A^T A, s^2 = 3 n eta / r; E[s^2 A^T A] = eta I is s2's test."""
    it = of("lora", "scaling=goat", "scaling.eta=0.25", optimizer="sgd", max_steps=3)
    start, full = now(it), full_gradients(it)
    it.steps(1)
    moved = now(it)
    for name, own in start.items():
        assert torch.equal(moved[name]["A"], own["A"])
        square = 3 * own["A"].shape[1] * 0.25 / 8
        near(update_of(*_split(moved[name])), -LR * square * full[name] @ own["A"].T @ own["A"])
    it.steps(1)
    assert all(not torch.equal(now(it)[name]["A"], own["A"]) for name, own in start.items())


def _split(own: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {role: own[role] for role in "AB"}, {r: t for r, t in own.items() if r in ("A0", "B0", "scale")}


def test_milora_under_dora_turns_rows_in_minor_directions_and_keeps_their_trained_lengths():
    """Before the row's rescaling the update is dB A + B0 dA of the smallest singular triplets."""
    it = of("dora", "init=svd_minor", "scaling=constant")
    before = logits(it.base.model)
    assert torch.equal(before, logits(llama()))
    losses = it.steps(2)[0]
    assert losses[0] != losses[1]
    assert not torch.equal(logits(it.base.model), before)
    merged = merged_weights(it.adapted, 0)
    for name, own in now(it).items():
        torch.testing.assert_close(merged[name].norm(dim=1), own["magnitude"], rtol=1e-5, atol=0)
        weight = it.adapted.modules[name].base.weight
        assert not torch.equal(own["magnitude"], own["row_norm"])
        u, _, vh = torch.linalg.svd(weight)
        h = min(weight.shape)
        learnt = update_of(*_split(own))
        outside = u[:, : h - 8].T @ learnt @ vh[: h - 8].T  # needs both a new column and a new row: second order
        assert outside.norm() < 0.05 * learnt.norm()


def test_pissa_with_lora_plus_moves_b_sixteen_times_as_far():
    """Adam's first step is lr times the gradient's sign, whatever its size."""
    it = of("pissa", "update=lora_plus")
    start = now(it)
    grads = gradients(it)
    moved = now(it)
    for name, own in start.items():
        for role, rate in (("A", LR), ("B", 16 * LR)):
            g = grads[f"{name}.{role}"]
            seen = g.abs() > 1e-5  # far above Adam's epsilon
            torch.testing.assert_close((moved[name][role] - own[role])[seen], -rate * g.sign()[seen], rtol=2e-3, atol=0)
            assert seen.float().mean() > 0.5
        assert torch.equal(own["A"], own["A0"])
        assert torch.equal(moved[name]["A0"], own["A0"])
    it.steps(1)
    assert all(not torch.equal(now(it)[n]["B"], own["B"]) for n, own in moved.items())


def test_riemannian_steps_on_goat_are_each_experts_own():
    """A_e <- A_e - lr (B_e^T B_e + delta I)^-1 G_e from GOAT's own start; the router's step stays plain."""
    delta, lr = 1e-3, 0.1  # a rate whose steps float32 keeps
    plain = of("goat", optimizer="sgd", lr=lr)
    it = of("goat", "update=riemannian", f"update.delta={delta}", optimizer="sgd", lr=lr)
    start = now(it)
    it.steps(1)
    raw, moved = gradients(plain), now(it)
    for name, own in start.items():
        for role, partner in ("AB", "BA"):
            F, G = own[partner].double().unflatten(0, (8, -1)), raw[f"{name}.{role}"].double().unflatten(0, (8, -1))
            gram = F @ F.mT + delta * torch.eye(F.shape[1], dtype=torch.float64)
            step = torch.linalg.solve(gram, G).flatten(0, 1)
            near((moved[name][role] - own[role]).double(), -lr * step, 1e-3)
        near(moved[name]["router"] - own["router"], -lr * raw[f"{name}.router"], 1e-3)
    it.steps(1)


@pytest.mark.parametrize("init", ["svd_principal", "svd_minor"])
def test_adalora_from_an_svd_start_first_learns_how_much_of_each_direction(init):
    """E is zero, so E alone has a gradient: the first step adds multiples of W0's own singular triplets."""
    it = of("adalora", f"init={init}", "scaling=constant", "scaling.value=1", "structure.orthogonality.coefficient=0",
            "structure.target_rank=8")  # fmt: skip
    start, before = now(it), logits(it.base.model)
    assert torch.equal(before, logits(llama()))
    it.steps(1)
    for name, own in now(it).items():
        assert all(torch.equal(own[role], start[name][role]) for role in "AB")
        weight = it.adapted.modules[name].base.weight
        u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
        core = u.T @ (merged_weights(it.adapted, 0)[name] - weight) @ vh.T
        assert (core - core.diag().diag()).norm() < 1e-3 * core.norm()
        at = slice(0, 8) if init == "svd_principal" else slice(-8, None)
        near(core.diag()[at].abs(), own["E"][:, 0].abs() * sigma[at], 1e-3)
    it.steps(1)
    assert all(not torch.equal(own[role], start[name][role]) for name, own in now(it).items() for role in "AB")


@pytest.mark.parametrize(
    ("preset", "overrides", "combines"),
    [
        ("hydralora", ("init=svd_segments",), "any other init"),
        ("goat_s", ("structure=shared_a", "init=svd_principal"), "any but goat_s"),
        ("hydralora", ("update=riemannian",), "plain, lora_plus, freeze_a"),
        ("molora_topk", ("scaling=goat_s",), "svd_segments, svd_principal, svd_minor, svd_middle, svd_random"),
        ("goat_s", ("init=gradient",), "svd_segments, svd_principal, svd_minor, svd_middle, svd_random"),
    ],
)
def test_what_makes_no_sense_says_what_does(preset, overrides, combines):
    """And what it names is there."""
    with pytest.raises(BadInput) as refused:
        method(preset, *overrides)
    assert combines in refused.value.legal
    for value in combines.split(", ") if "," in combines else ():
        axis = overrides[0].partition("=")[0] if overrides[0].startswith("update") else "init"
        method(preset, *(o for o in overrides if not o.startswith(f"{axis}=")), f"{axis}={value}")
