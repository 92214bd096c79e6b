"""The survey's invariants that no other file has, by their letter; and that every one of them has a test."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ablora.method.attach import Adapted
from ablora.method.dropout import Draw
from ablora.method.export import load_adapter, merged_weights, save_adapter
from ablora.method.factors import expert_products, residual_weight
from ablora.method.init._base import Site
from ablora.models.segments import packed_logits
from presets import method, names
from tiny import adapt, disturb, ids, llama, logits

sys.path.append(str(Path(__file__).parents[1] / "train"))
from packs import pack, spec

TESTS = Path(__file__).parents[1]
NUMBERS = {"i": 5, "s": 2, "g": 4, "m": 7, "r": 5, "o": 7, "v": 4}
"""How many invariants each letter has in the survey: at init, scaling, gradients, mixtures, Riemannian, optimizer and
schedule, saving and merging."""
PAIRS = [name for name in names() if method(name).structure.experts == 1]
PRODUCTS = {
    (type(method(name).init), method(name).structure.group()): name
    for name in names()
    if name not in ("molora", "alora")
}
"""One preset of each start and structure, but for MoLoRA, whose ten experts do not divide 8, and ALoRA, whose factors
have empty rows (o4)."""
STARTED = [name for name in PAIRS if type(method(name).init).__name__.startswith("Svd")]


def test_every_invariant_has_a_test():
    text = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    named = set(re.findall(r"^def test_([a-z]\d)_", text, re.M))
    every = {f"{letter}{n}" for letter, last in NUMBERS.items() for n in range(1, last + 1)}
    assert every <= named


def gradients(adapted: Adapted) -> dict[str, Tensor]:
    """Of the task alone."""
    adapted.clear_gradients()
    packed_logits(adapted.model, ids(), [[64]]).square().mean().backward()  # pyright: ignore[reportArgumentType]
    adapted.hand_out_gradients()
    return {name: p.grad.clone() for name, p in adapted.parameters(0).items() if p.grad is not None}


def full_gradients() -> dict[str, Tensor]:
    """dL/dW of the base's weights, by module."""
    model = llama(torch.float64)
    model.requires_grad_(True)
    packed_logits(model, ids(), [[64]]).square().mean().backward()
    return {name.removesuffix(".weight"): p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", sorted(PRODUCTS.values()))
def test_i4_a_product_has_at_most_rank_r(preset):
    adapted = adapt(llama(torch.float64), method(preset), rank=8, compute_dtype="float64")
    disturb(adapted)
    for name, record in adapted.records[0].items():
        products = expert_products(adapted, 0, name)
        values, together = torch.linalg.svdvals(products), torch.linalg.svdvals(products.sum(0))
        assert record.rank is not None
        assert (values[:, record.rank // len(products) :] < 1e-12 * values[:, :1]).all(), name
        assert (together[record.rank :] < 1e-12 * together[0]).all(), name
        assert (values[:, record.rank // len(products) - 1] > 1e-6 * values[:, 0]).all(), name


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("preset", "kept"), [("pissa", slice(8, None)), ("milora", slice(None, -8))])
def test_i4_what_is_left_has_the_other_singular_values_whatever_s(preset, kept, scale):
    adapted = adapt(llama(torch.float64), method(preset, f"scaling.value={scale}"), compute_dtype="float64")
    for name, layer in adapted.modules.items():
        left = torch.linalg.svdvals(residual_weight(adapted, 0, name))
        expected = torch.linalg.svdvals(layer.base.weight)[kept]
        torch.testing.assert_close(left[:-8], expected, rtol=1e-6, atol=1e-9)
        assert (left[-8:] < 1e-6 * left[0]).all()


def test_i4_goats_experts_are_segments_over_rho_in_orthogonal_directions():
    adapted = adapt(llama(torch.float64), method("goat", "structure.experts=4"), compute_dtype="float64")
    for name, layer in adapted.modules.items():
        sigma, stride = torch.linalg.svdvals(layer.base.weight), min(layer.base.weight.shape) // 4
        for j, product in enumerate(expert_products(adapted, 0, name)):
            found = torch.linalg.svdvals(product)[:2]
            torch.testing.assert_close(found, sigma[j * stride : j * stride + 2] / 10, rtol=1e-6, atol=1e-9)
        for role in "AB":
            rows = adapted.factors(0)[name].params[role].detach()
            gram = rows @ rows.mT
            assert (gram - gram.diagonal().diag()).abs().max() < 1e-6 * gram.max()


@pytest.mark.parametrize("preset", [*STARTED, "corda_ipm", "corda_kpm"])
def test_i5_what_is_taken_out_does_not_depend_on_alpha(preset):
    one, other = (
        adapt(llama(), method(preset, "scaling=alpha_over_r", f"scaling.alpha={alpha}")) for alpha in (4.0, 64.0)
    )
    for name in one.modules:
        torch.testing.assert_close(
            expert_products(one, 0, name), expert_products(other, 0, name), rtol=1e-4, atol=1e-6
        )  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "overrides", "formula"),
    [
        ("lora", (), lambda n, r: 16 / r),
        ("rslora", (), lambda n, r: 16 / r**0.5),
        ("goat", (), lambda n, r: (3 * n / (r / 8)) ** 0.5),
        ("goat", ("scaling.eta=0.1",), lambda n, r: (3 * n * 0.1 / (r / 8)) ** 0.5),
        ("lora", ("scaling=goat",), lambda n, r: (3 * n / r) ** 0.5),
        ("molora_topk", (), lambda n, r: 16 / (r / 8)),
        ("adalora", (), lambda n, r: 16 / r),
        ("eva", (), lambda n, r: 16 / r),
    ],
)
def test_s1_scales_are_their_formulas_of_every_module(preset, overrides, formula):
    """Of each module's own input width n, and the run's rank r: a module that a start gives more or fewer directions
    keeps it. AdaLoRA's program adds 1e-5 to r, which is left out here."""
    adapted = adapt(llama(), method(preset, *overrides), rank=16)
    widths = {layer.base.in_features for layer in adapted.modules.values()}
    assert widths == {32, 48}
    for name, record in adapted.records[0].items():
        assert record.scaling == pytest.approx(formula(adapted.modules[name].base.in_features, 16), rel=1e-6)


@pytest.mark.parametrize("eta", [1.0, 0.1])
def test_s2_a_is_uniform_and_goats_scale_gives_its_steps_the_size_of_full_fine_tuning(eta):
    """|A_ij| <= 1 / sqrt(n), of variance 1 / (3 n), hence mean diag(s^2 A^T A) = eta."""
    n, r = 4096, 64
    site = Site(torch.empty(8, n), r, 1, 1.0, torch.Generator().manual_seed(0))
    A = method("lora").init(site, None).A.double()
    assert A.abs().max() <= n**-0.5
    assert A.abs().max() > 0.999 * n**-0.5
    few = 4 / (n * r) ** 0.5
    assert A.var().item() == pytest.approx(1 / (3 * n), rel=few)
    s = method("lora", "scaling=goat", f"scaling.eta={eta}").scaling(8, n, r)
    assert s**2 * A.square().sum(0).mean().item() == pytest.approx(eta, rel=few)


@pytest.mark.parametrize("preset", ["lora", "rslora", "lora_plus", "lora_fa", "riemannian_lora", "dora", "eva"])
def test_g1_a_zero_b_alone_gets_the_full_gradient_on_the_rows_of_a(preset):
    adapted = adapt(llama(torch.float64), method(preset), compute_dtype="float64")
    found, full = gradients(adapted), full_gradients()
    assert {name.rpartition(".")[2] for name in found} >= {"B"}
    for name, (params, frozen) in adapted.factors(0).items():
        if f"{name}.A" in found:
            assert not found[f"{name}.A"].any()
        expected = frozen["scale"][:, None] * (params["A"].detach() @ full[name].mT)
        torch.testing.assert_close(found[f"{name}.B"], expected, rtol=1e-5, atol=1e-8 * expected.abs().max().item())
        assert expected.abs().max() > 0


@pytest.mark.parametrize("preset", [*STARTED, "olora", "orthogonal", "corda_ipm", "lora_ga"])
def test_g3_a_start_teaches_both_factors_by_the_full_gradient(preset):
    """dL/dA = s B0^T G and dL/dB = s G A0^T, G the gradient of the base's own weight."""
    adapted = adapt(llama(torch.float64), method(preset), compute_dtype="float64")
    found, full = gradients(adapted), full_gradients()
    for name, (_, frozen) in adapted.factors(0).items():
        s = frozen["scale"][:, None]
        for role, expected in (("A", frozen["B0"] @ full[name]), ("B", frozen["A0"] @ full[name].mT)):
            size = expected.abs().max().item()
            assert size > 0
            torch.testing.assert_close(found[f"{name}.{role}"], s * expected, rtol=1e-5, atol=1e-6 * size)


def test_g3_doras_lengths_learn_at_step_0():
    found = gradients(adapt(llama(), method("dora")))
    assert all(grad.any() for name, grad in found.items() if name.endswith("magnitude"))


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "adalora", "goat", "hydralora"])
def test_g4_the_base_is_bit_for_bit_what_it_was_after_training(preset):
    it = pack(spec(preset))
    it.steps(3)
    it.adapted.detach()
    fresh = llama().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in it.base.model.state_dict().items())
    assert all(p.grad is None for p in it.base.model.parameters())


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "adalora"])
def test_v1_merged_in_bfloat16_is_near_and_taken_out_again_is_the_weight(preset):
    model = llama(torch.bfloat16)
    adapted = adapt(model, method(preset))
    disturb(adapted)
    expected, merged = logits(model).float(), merged_weights(adapted, 0)
    fresh = llama(torch.bfloat16)
    with torch.no_grad():
        for name, weight in merged.items():
            fresh.get_submodule(name).weight.copy_(weight)
    assert (logits(fresh).float() - expected).norm() < 2e-2 * expected.norm()
    for name, layer in adapted.modules.items():
        params, frozen = adapted.factors(0)[name]
        if preset == "dora":
            own = params["magnitude"] / merged[name].norm(dim=1)
            torch.testing.assert_close(own, torch.ones_like(own), rtol=1e-5, atol=0)
        else:
            zero = torch.zeros_like(layer.base.weight, dtype=torch.float32)
            back = merged[name] - method(preset).structure.merge(zero, params, frozen)
            torch.testing.assert_close(back, layer.base.weight.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["pissa", "milora", "olora", "lora_ga", "goat"])
def test_v2_loading_twice_subtracts_nothing_twice(preset, tmp_path):
    model = llama()
    adapted = adapt(model, method(preset))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    fresh = llama()
    again = adapt(fresh, method(preset), seed=1)
    for _ in range(2):
        load_adapter(again, 0, tmp_path)
        assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "goat", "adamole", "molora"])
def test_v4_dropout_is_of_training_and_evaluations_repeat_bit_for_bit(preset):
    model, plain = llama(), llama()
    adapted, without = adapt(model, method(preset), dropout=0.5), adapt(plain, method(preset))
    disturb(adapted)
    disturb(without)
    first, second = logits(model), logits(model)
    assert torch.equal(first, second)
    assert torch.equal(first, logits(plain))
    seen = []
    for step in (1, 1, 2):
        adapted.state.draws = [Draw(0, step, 0, 0.5)]
        seen.append(logits(model))
    assert [torch.equal(a, b) for a, b in pairwise([first, *seen])] == [False, True, False]
