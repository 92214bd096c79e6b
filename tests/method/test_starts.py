"""Starts from QR, from random complementary subspaces and from data: the invariants that they are known by."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ablora.method.factors import expert_products, residual_weight
from ablora.method.init._base import DataDriven, Site, Triplets
from ablora.method.lowrank import LowRank
from ablora.models.segments import packed_logits
from ablora.spec import BadInput
from ablora.spectra.decompose import decompose
from ablora.spectra.statistics import Sums
from presets import method
from tiny import adapt, ids, llama

STARTED = ["olora", "orthogonal", "middle_svd", "corda_ipm", "corda_kpm", "lora_ga"]
VECTORS = Path(__file__).parents[1] / "vectors"


def site(chosen: LowRank, weight: Tensor, rank: int, sums: Sums | None = None, scale: float = 1.0) -> Site:
    return Site(weight, rank, chosen.structure.experts, scale, torch.Generator().manual_seed(0), sums)


def start(chosen: LowRank, at: Site) -> tuple[Tensor, Tensor]:
    """(A, B as (out, rank)) of a module, in float64."""
    init, triplets = chosen.init, None
    if (indices := init.indices(at)) is not None:
        s = decompose(chosen.init.matrix(at) if isinstance(init, DataDriven) else at.weight, indices)
        where = s.positions(indices)
        assert where is not None
        triplets = Triplets(s.u[where], s.sigma[indices], s.v[where])
    A, B, _ = chosen.init(at, triplets)
    return A.double(), torch.zeros(0) if B is None else B.double().mT


def weight_and_inputs(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=g, dtype=torch.float64)
    x = torch.randn(3 * n, n, generator=g, dtype=torch.float64) @ mix + 1
    return torch.randn(m, n, generator=g, dtype=torch.float64), x


def moments(x: Tensor) -> dict[str, Tensor]:
    return {"count": x.new_tensor(len(x)), "total": x.sum(0), "square": x.T @ x}


@pytest.mark.parametrize("preset", STARTED)
def test_i2_residual_and_start_make_up_the_weight(preset):
    adapted = adapt(llama(), method(preset))
    for name, layer in adapted.modules.items():
        whole = residual_weight(adapted, 0, name) + expert_products(adapted, 0, name)[0]
        error = (whole - layer.base.weight).norm() / layer.base.weight.norm()
        assert error < 1e-5


@pytest.mark.parametrize("preset", [*STARTED, "eva"])
def test_g3_what_both_factors_get_at_step_0(preset):
    """A start away from zero teaches both factors at once; B at zero teaches B alone."""
    model = llama()
    adapted = adapt(model, method(preset))
    packed_logits(model, ids(), [[64]]).square().mean().backward()
    adapted.hand_out_gradients()
    for name, p in adapted.parameters(0).items():
        assert p.grad is not None
        assert (p.grad.abs().sum() > 0) == (preset != "eva" or name.endswith("B"))


@pytest.mark.parametrize(("m", "n"), [(24, 16), (16, 24)])
def test_i4_olora_is_orthonormal_and_the_head_of_qr(m, n):
    weight, _ = weight_and_inputs(m, n)
    A, B = start(method("olora"), site(method("olora"), weight, 5))
    torch.testing.assert_close(B.T @ B, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close((B @ A)[:, :5], weight[:, :5])
    assert not torch.allclose((B @ A)[:, 5:], weight[:, 5:])


def test_i5_what_is_taken_apart_grows_with_s_in_olora_and_not_in_corda():
    weight, x = weight_and_inputs(24, 16)
    for preset, grows in (("olora", True), ("corda_ipm", False), ("corda_kpm", False), ("middle_svd", False)):
        products = []
        for s in (1.0, 4.0):
            A, B = start(method(preset), site(method(preset), weight, 4, moments(x), s))
            products.append(s * B @ A)
        ratio = (products[1].norm() / products[0].norm()).item()
        assert ratio == pytest.approx(4.0 if grows else 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 2, 3]))
def test_orthogonal_products_are_zero_expert_by_expert(size, experts):
    chosen = method("orthogonal", *(() if experts == 1 else ("structure=experts", f"structure.experts={experts}")),
                    *(("structure.top_k=1",) if experts > 1 else ()))  # fmt: skip
    weight, _ = weight_and_inputs(30, 28)
    A, B = start(chosen, site(chosen, weight, size * experts))
    for a, b in zip(A.split(size), B.split(size, dim=1)):
        assert (b @ a).abs().max() < 1e-6
        assert a.abs().max() > 1e-2
        assert size == 1 or b.abs().max() > 1e-2


@pytest.mark.parametrize(("m", "n"), [(24, 16), (16, 24)])
def test_o7_corda_of_full_rank_is_the_weight_and_its_two_parts_divide_it(m, n):
    weight, x = weight_and_inputs(m, n)
    seen, h = moments(x), min(m, n)
    for part in ("corda_ipm", "corda_kpm"):
        A, B = start(method(part), site(method(part), weight, h, seen))
        torch.testing.assert_close(B @ A, weight)
    ipm = start(method("corda_ipm"), site(method("corda_ipm"), weight, 5, seen))
    kpm = start(method("corda_kpm"), site(method("corda_kpm"), weight, h - 5, seen))
    torch.testing.assert_close(ipm[1] @ ipm[0] + kpm[1] @ kpm[0], weight)


def test_corda_takes_what_the_inputs_use():
    """Inputs along one feature alone: the first direction of ipm is that feature's column, kpm leaves it."""
    weight, _ = weight_and_inputs(24, 16)
    x = torch.full((40, 16), 1e-3, dtype=torch.float64)
    x[:, 3] = 1.0
    lone = {"count": x.new_tensor(40.0), "square": x.T @ x}
    A, B = start(method("corda_ipm"), site(method("corda_ipm"), weight, 1, lone))
    assert ((B @ A)[:, 3] - weight[:, 3]).norm() < 0.05 * weight[:, 3].norm()
    A, B = start(method("corda_kpm"), site(method("corda_kpm"), weight, 4, lone))
    assert (B @ A)[:, 3].norm() < 0.05 * weight[:, 3].norm()


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
@pytest.mark.parametrize(("m", "n"), [(24, 16), (16, 24)])
def test_o6_lora_ga_has_the_gradients_directions_at_the_stable_size(m, n, direction):
    weight, _ = weight_and_inputs(m, n)
    gradient, _ = weight_and_inputs(m, n, seed=1)
    chosen = method("lora_ga", f"init.direction={direction}", "init.gamma=9.0")
    seen = {"count": gradient.new_tensor(3.0), "gradient": 3 * gradient}
    A, B = start(chosen, site(chosen, weight, 4, seen, scale=5.0))
    size = m**0.5 / 9 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(A @ A.T, size)
    torch.testing.assert_close(B.T @ B, size)
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    first, second = {"ArB2r": (range(4), range(4, 8)), "A2rBr": (range(4, 8), range(4)),
                     "ArBr": (range(1, 8, 2), range(0, 8, 2))}[direction]  # fmt: skip
    inside = (A @ vh[list(first)].T).norm(), (B.T @ u[:, list(second)]).norm()
    assert inside[0] == pytest.approx(A.norm().item())
    assert inside[1] == pytest.approx(B.norm().item())


@pytest.mark.parametrize("size", ["unit", "gd", "weight"])
def test_lora_ga_sizes_are_the_official_programs(size):
    tensors = load_file(VECTORS / "lora_ga_init.safetensors")
    chosen = method("lora_ga", f"init.size={size}")
    seen = {"count": torch.ones(()), "gradient": tensors["G"].double()}
    A, B = start(chosen, site(chosen, tensors["W"], 4, seen, scale=8.0))
    official = "weightS" if size == "weight" else size
    theirs_a, theirs_b = tensors[f"ArB2r_{official}_A"].double(), tensors[f"ArB2r_{official}_B"].double()
    torch.testing.assert_close(A.abs(), theirs_a.abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(B.abs(), theirs_b.abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "theirs"), [("stable", "stable"), ("gd", "gd_scale"), ("weight", "weight_svd")])
def test_lora_ga_in_the_form_of_peft_is_pefts(size, theirs):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    tensors = load_file(VECTORS / "lora_ga_init.safetensors")
    linear = torch.nn.Linear(16, 24, bias=False)
    linear.weight.data.copy_(tensors["W"])
    linear._peft_loraga_grad = tensors["G"]  # pyright: ignore[reportArgumentType] -- as preprocess_loraga leaves it
    ga = peft.LoraGAConfig(direction="ArB2r", scale=theirs, stable_gamma=16)
    config = peft.LoraConfig(r=4, lora_alpha=16, use_rslora=True, init_lora_weights="lora_ga", lora_ga_config=ga,
                             target_modules=["0"])  # fmt: skip
    layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    chosen = method("lora_ga", "init.form=peft", f"init.size={size}")
    seen = {"count": torch.ones(()), "gradient": tensors["G"].double()}
    A, B = start(chosen, site(chosen, tensors["W"], 4, seen, scale=8.0))
    torch.testing.assert_close(A.abs(), layer.lora_A["default"].weight.double().abs(), rtol=1e-4, atol=1e-4)
    expected = layer.lora_B["default"].weight.double()
    rough = size == "weight"  # sigma_0(W) there is of a random decomposition, here exact
    assert B.norm().item() == pytest.approx(expected.norm().item(), rel=0.03 if rough else 1e-4)
    torch.testing.assert_close(B.abs() / B.norm(), expected.abs() / expected.norm(), rtol=1e-4, atol=1e-4)


def test_o5_eva_has_orthonormal_rows_along_the_largest_variances():
    _, x = weight_and_inputs(24, 16)
    chosen = method("eva")
    A, _ = start(chosen, site(chosen, torch.empty(24, 16), 5, moments(x)))
    torch.testing.assert_close(A @ A.T, torch.eye(5, dtype=torch.float64))
    _, _, vh = torch.linalg.svd(x - x.mean(0))
    torch.testing.assert_close((A @ vh[:5].T).abs(), torch.eye(5, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert (A.gather(1, A.abs().argmax(1, keepdim=True)) > 0).all()


def test_eva_refuses_samples_that_do_not_vary_enough():
    _, x = weight_and_inputs(24, 16)
    chosen = method("eva")
    for few in (x[:5], x[:1].expand(40, -1)):
        with pytest.raises(BadInput, match=r"method.init.calibration.samples.*vary in at least 5"):
            start(chosen, site(chosen, torch.empty(24, 16), 5, moments(few)))
    start(chosen, site(chosen, torch.empty(24, 16), 5, moments(x[:6])))


def test_lora_ga_refuses_a_rank_over_half_the_smaller_side():
    with pytest.raises(BadInput, match=r"rank=9 .* 1 to 8, what Gradient has for model.layers.0.self_attn.k_proj"):
        adapt(llama(), method("lora_ga"), rank=9)
    adapt(llama(), method("lora_ga"), rank=8)
