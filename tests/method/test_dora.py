"""DoRA against the dense weight that it never forms: step 0, norms, gradients, dropout, merging, other starts."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.dropout import Draw, keep_mask
from ablora.method.export import merged_weights, peft_tensors, save_adapter
from ablora.method.member import Member
from ablora.method.structure.dora import BLOCK, rescaling, row_norms
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from presets import method
from tiny import adapt, disturb, ids, llama, logits

VECTORS = Path(__file__).parents[1] / "vectors"


class One(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
        self.linear.weight.data.copy_(weight)
        if bias is not None:
            self.linear.bias.data.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def one(weight: Tensor, *overrides: str, bias: Tensor | None = None, rank: int = 4, **adapter) -> tuple[One, Adapted]:
    layer = One(weight, bias)
    spec = AdapterSpec(targets="linear", compute_dtype="float64", **adapter)
    return layer, attach(layer, [Member(method("dora", *overrides), rank, spec, 0)], Library(None))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(adapted: Adapted) -> tuple[Tensor, Tensor]:
    """(V, c) from the factors as they stand, formed with the dense product."""
    params, frozen = adapted.factors(0)["linear"]
    product = (params["B"] * frozen["scale"][:, None]).mT @ params["A"]
    if "A0" in frozen:
        product = product - (frozen["B0"] * frozen["scale"][:, None]).mT @ frozen["A0"]
    V = adapted.modules["linear"].base.weight + product
    return V, params["magnitude"] / V.norm(dim=1)


@pytest.mark.parametrize("init", ["zero_b", "svd_principal", "svd_minor", "svd_random"])
def test_rows_keep_the_base_s_lengths_at_step_0_and_m_s_afterwards(init):
    _, adapted = one(draw(24, 16), f"init={init}")
    weight = adapted.modules["linear"].base.weight
    assert torch.equal(adapted.parameters(0)["linear.magnitude"], row_norms(weight))
    assert torch.equal(merged_weights(adapted, 0)["linear"], weight)
    disturb(adapted, size=0.1)
    found = merged_weights(adapted, 0)["linear"].norm(dim=1)
    torch.testing.assert_close(found, adapted.parameters(0)["linear.magnitude"].detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("init", ["zero_b", "svd_minor"])
@pytest.mark.parametrize("detach", [True, False])
def test_output_and_gradients_are_those_of_the_dense_weight(init, detach):
    layer, adapted = one(draw(24, 16), f"init={init}", f"structure.detach_norm={detach}", bias=draw(24, seed=9))
    disturb(adapted, size=0.1)
    x, C = draw(1, 7, 16, seed=1), draw(1, 7, 24, seed=2)
    out = layer(x)
    (out * C).sum().backward()
    adapted.hand_out_gradients()
    found = {role: p.grad.clone() for role, p in adapted.parameters(0).items() if p.grad is not None}
    for parameter in adapted.parameters(0).values():
        parameter.grad = None
    V, c = dense(adapted)
    c = adapted.parameters(0)["linear.magnitude"] / V.detach().norm(dim=1) if detach else c
    expected = x @ (c[:, None] * V).mT + adapted.modules["linear"].base.bias
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    (expected * C).sum().backward()
    for role, parameter in adapted.parameters(0).items():
        torch.testing.assert_close(found[role], parameter.grad, rtol=1e-9, atol=1e-10)


def test_the_official_gradients_without_detaching():
    given = load_file(VECTORS / "peft_dora.safetensors")
    layer, adapted = one(given["W"], "scaling.alpha=8", "structure.detach_norm=false", bias=given["bias"])
    given_factors = {"linear.A": given["A"], "linear.B": given["B"].mT, "linear.magnitude": given["magnitude"]}
    adapted.write(0, given_factors)
    (layer(given["x"].reshape(1, -1, 16)) * given["C"].reshape(1, -1, 24)).sum().backward()
    adapted.hand_out_gradients()
    grads = {role: p.grad for role, p in adapted.parameters(0).items() if p.grad is not None}
    torch.testing.assert_close(grads["linear.A"], given["grad_A_norm_not_detached"], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(grads["linear.B"], given["grad_B_norm_not_detached"].mT, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bias", [None, draw(24, seed=9)], ids=["plain", "bias"])
def test_dropout_drops_the_same_numbers_before_the_base_and_the_pair(bias):
    layer, adapted = one(draw(24, 16), bias=bias, dropout=0.25)
    disturb(adapted, size=0.1)
    x, place = draw(1, 30, 16, seed=1), Draw(0, 1, 0, 0.25)
    adapted.state.draws = [place]
    found = layer(x)
    dropped = x[0] * keep_mask(place, "linear", (30, 16)).double()
    V, c = dense(adapted)
    weight = adapted.modules["linear"].base.weight
    expected = adapted.modules["linear"].base(x[0]) + (c - 1) * (dropped @ weight.mT) + c * (dropped @ (V - weight).mT)
    torch.testing.assert_close(found[0], expected, rtol=1e-11, atol=1e-12)
    adapted.state.draws = None
    assert not torch.allclose(layer(x), found)


def test_a_base_of_zero_rows_stays_finite_and_the_base():
    weight = draw(24, 16)
    weight[3] = 0
    for detach in ("true", "false"):
        layer, adapted = one(weight, f"structure.detach_norm={detach}")
        x = draw(1, 5, 16, seed=1)
        assert torch.isfinite(merged_weights(adapted, 0)["linear"]).all()
        assert torch.equal(layer(x), adapted.modules["linear"].base(x))
        layer(x).square().sum().backward()
        adapted.hand_out_gradients()
        assert all(torch.isfinite(p.grad).all() for p in adapted.parameters(0).values() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_factor_is_exactly_1_at_step_0_for_lengths_of_any_size(dtype):
    """The root of a rounded square is the number itself: 20000 rows of sizes from 1e-6 to 1e6."""
    size = torch.logspace(-6, 6, 20000, dtype=torch.float64)[:, None]
    weight = (size * draw(20000, 8)).to(dtype)
    norms = row_norms(weight).to(dtype)
    A, B = draw(4, 8).to(dtype), draw(4, 20000).to(dtype)
    frozen = {"scale": torch.full((4,), 2.0, dtype=dtype), "row_norm": norms, "A0": A, "B0": B}
    given = {"A": A, "B": B, "magnitude": norms}
    assert torch.equal(rescaling(given, frozen, weight, True), torch.ones(20000, dtype=dtype))


def test_norms_by_blocks_are_the_norms():
    rows = 3 * (BLOCK // 64) // 2
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    torch.testing.assert_close(row_norms(weight), weight.double().norm(dim=1), rtol=1e-12, atol=0)
    A, B = 0.1 * torch.randn(4, 64), 0.1 * torch.randn(4, rows)
    norms = row_norms(weight).float()
    given = {"A": A, "B": B, "magnitude": norms}
    found = rescaling(given, {"scale": torch.full((4,), 2.0), "row_norm": norms}, weight, True)
    expected = norms / (weight.double() + 2 * B.double().mT @ A.double()).norm(dim=1)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-6, atol=0)


def test_peft_holds_a_started_pair_as_rank_2r_with_the_same_lengths(tmp_path):
    """MiLoRA's start under DoRA, through PEFT and back, and what the export says of itself."""
    model = llama()
    adapted = adapt(model, method("dora", "init=svd_minor"))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    exported = peft_tensors(adapted, 0)
    assert exported is not None
    assert (exported[1]["use_dora"], exported[1]["r"]) == (True, 16)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    with torch.no_grad():
        out = torch.cat([loaded(input_ids=part).logits for part in ids().split([20, 31, 13], dim=1)], dim=1)
    torch.testing.assert_close(out, logits(model), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(out, logits(llama()), atol=1e-3)
