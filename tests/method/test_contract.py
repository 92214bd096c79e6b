"""What every method promises, over every YAML in conf/method: a new value is under test the moment it exists."""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from ablora.method.export import EXACT, load_adapter, merged_weights, save_adapter
from ablora.method.factors import expert_products
from ablora.method.structure._base import Unmergeable
from ablora.models.segments import packed_logits
from ablora.spec import BadInput
from ablora.store.atomic import Corrupted
from presets import axis_values, method, packed
from tiny import adapt, disturb, ids, llama, logits, qwen

PRESETS = packed()
PLAIN = ("zero_b", "alpha_over_r", "pair")
COMPOSITIONS = [
    c for c in product(axis_values("init"), axis_values("scaling"), axis_values("structure"))
    if any(value == plain for value, plain in zip(c, PLAIN))
]  # fmt: skip
"""Every two values of different axes, the third at LoRA's."""
AT_ZERO = {"zero_b", "activation"}
"""Starts with B at zero."""
SHARED = {"shared_a"}
"""Mixtures whose experts start alike, which is the base for any weights that sum to 1."""
DTYPES = [torch.float32, torch.bfloat16]


def composed(init: str, scaling: str, structure: str):
    return method("lora", f"init={init}", f"scaling={scaling}", f"structure={structure}")


def mergeable(preset: str) -> bool:
    return method(preset).structure.experts == 1


def deviates(init: str, structure: str) -> bool:
    """A started mixture is the base in expectation over routers only."""
    return mixture(structure) and structure not in SHARED and init not in AT_ZERO


def mixture(structure: str) -> bool:
    return method("lora", f"structure={structure}").structure.experts > 1


def refused(init: str, scaling: str, structure: str) -> bool:
    """Crossings without a meaning; what they say is tested in test_mixtures.py."""
    if scaling == "goat_s":
        return mixture(structure) and (structure in SHARED or not init.startswith("svd_"))
    return structure in SHARED and init == "svd_segments"


@pytest.mark.parametrize("base", [llama, qwen], ids=["llama", "qwen2_with_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("init", "scaling", "structure"), [c for c in COMPOSITIONS if not deviates(c[0], c[2]) and not refused(*c)]
)
def test_i1_step_0_is_the_base_bit_for_bit(base, dtype, init, scaling, structure):
    model = base(dtype)
    before = logits(model)
    adapt(model, composed(init, scaling, structure))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", axis_values("init"))
def test_i1_step_0_is_the_base_whatever_the_compute_dtype(init, compute_dtype):
    model = llama()
    before = logits(model)
    adapt(model, composed(init, "alpha_over_r", "pair"), compute_dtype=compute_dtype)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("variant", ["own", "principal", "minor", "random"])
def test_i3_goat_deviates_by_its_formula(variant):
    """y - W x = (1/rho) sum_i (w_i(x) - 1/E) U_i S_i V_i^T x, whatever s."""
    goat = method("goat", f"init.variant={variant}", "structure.experts=4")
    model = llama(torch.float64)
    adapted = adapt(model, goat, compute_dtype="float64")
    name, layer = next(iter(adapted.modules.items()))
    x = torch.randn(1, 40, layer.base.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    products = expert_products(adapted, 0, name)
    router = adapted.parameters(0)[f"{name}.router"].detach()
    p = (x[0] @ router.T).softmax(-1)
    top, index = p.topk(2, dim=-1)
    w = torch.zeros_like(p).scatter(-1, index, top / top.sum(-1, keepdim=True))
    expected = torch.einsum("te,eon,tn->to", w - 1 / 4, products, x[0])
    torch.testing.assert_close((layer(x) - layer.base(x))[0].detach(), expected, rtol=1e-9, atol=1e-12)
    spectrum = torch.linalg.svdvals(layer.base.weight)
    for j, product_ in enumerate(products):
        found = torch.linalg.svdvals(product_)[:2] * goat.init.rho
        assert min((spectrum - s).abs().min() for s in found) < 1e-10, j


def test_i3_goat_with_all_experts_and_a_zero_router_is_the_base_bit_for_bit():
    model = llama()
    before = logits(model)
    adapted = adapt(model, method("goat", "structure.top_k=8"))
    adapted.write(0, {k: torch.zeros_like(p) for k, p in adapted.parameters(0).items() if k.endswith("router")})
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("init", axis_values("init"))
def test_bfloat16_keeps_the_update(init):
    """After one AdamW step at lr 2e-5 the effective update in bfloat16 is within 2 % of float64's.

    Effective: what the adapter branch gives for the unit vectors, in bfloat16 compute, from float32 parameters.
    """
    model = llama(torch.bfloat16)
    preset = composed(init, "constant", "pair")
    adapted = adapt(model, preset, compute_dtype="bfloat16")
    before = {k: v.detach().clone() for k, v in adapted.parameters(0).items()}
    loss = packed_logits(model, ids(), [[64]]).float().logsumexp(-1).sum()
    loss.backward()
    adapted.hand_out_gradients()
    roles = adapted.roles(0)
    torch.optim.AdamW(preset.update.groups(roles, 2e-5), lr=2e-5, weight_decay=0.0).step()
    worst = 0.0
    for name, layer in adapted.modules.items():
        eye = torch.eye(layer.base.in_features, dtype=torch.bfloat16)[None]
        zero = torch.zeros(1, layer.base.in_features, layer.base.out_features)
        found = layer._adapt(eye, zero)[0].T.double()
        now = {r: adapted.parameters(0)[f"{name}.{r}"].detach().double() for r in "AB"}
        was = {r: before[f"{name}.{r}"].double() for r in "AB"}
        s = adapted.records[0][name].scaling
        exact = s * (now["B"].T @ now["A"] - was["B"].T @ was["A"])
        worst = max(worst, ((found - exact).norm() / exact.norm()).item())
    assert worst < 0.02


@pytest.mark.parametrize("preset", PRESETS)
def test_v1_merge_equals_forward_or_is_refused(preset):
    model = llama()
    adapted = adapt(model, method(preset))
    disturb(adapted)
    if not mergeable(preset):
        with pytest.raises(Unmergeable, match="routes every token"):
            merged_weights(adapted, 0)
        return
    adapted_logits, merged = logits(model), merged_weights(adapted, 0)
    fresh = llama()
    with torch.no_grad():
        for name, weight in merged.items():
            fresh.get_submodule(name).weight.copy_(weight)
    assert not torch.allclose(adapted_logits, logits(llama()), atol=1e-3), "the disturbance must be visible"
    torch.testing.assert_close(logits(fresh), adapted_logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_g4_only_the_adapter_learns_and_the_base_is_never_written(preset):
    model = llama()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = adapt(model, method(preset))
    disturb(adapted)
    (packed_logits(model, ids(), [[64]]).square().mean() + (adapted.penalty(0) or 0)).backward()
    adapted.hand_out_gradients()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters(0).values())
    adapted.detach()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("preset", PRESETS)
def test_v3_disabled_is_the_base(preset):
    model = llama()
    before = logits(model)
    adapted = adapt(model, method(preset))
    disturb(adapted)
    assert not torch.equal(logits(model), before)
    with adapted.disabled():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("preset", PRESETS)
def test_v2_saved_and_loaded_into_a_fresh_base(preset, tmp_path):
    model = llama()
    adapted = adapt(model, method(preset))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    fresh = llama()
    load_adapter(adapt(fresh, method(preset), seed=1), 0, tmp_path)
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("preset", [p for p in PRESETS if mergeable(p)])
def test_v2_peft_loads_what_was_exported(preset, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    model = llama()
    adapted = adapt(model, method(preset))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    with torch.no_grad():
        out = torch.cat([loaded(input_ids=part).logits for part in ids().split([20, 31, 13], dim=1)], dim=1)
    torch.testing.assert_close(out, logits(model), rtol=1e-5, atol=2e-5)


def test_a_damaged_adapter_is_named(tmp_path):
    adapted = adapt(llama(), method("pissa"))
    save_adapter(adapted, 0, tmp_path)
    good = (tmp_path / EXACT).read_bytes()
    (tmp_path / EXACT).write_bytes(good[: len(good) // 2])
    with pytest.raises(Corrupted, match=EXACT):
        load_adapter(adapted, 0, tmp_path)
    (tmp_path / EXACT).write_bytes(good)
    with pytest.raises(Corrupted, match="extra"):
        load_adapter(adapt(llama(), method("lora")), 0, tmp_path)
    assert "model.layers.0.self_attn.q_proj.A0" in load_file(tmp_path / EXACT)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_is_in_one_optimizer_group(preset):
    adapted = adapt(llama(), method(preset))
    groups = method(preset).groups(adapted.roles(0), 1e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(adapted.parameters(0))


@pytest.mark.parametrize(("init", "scaling", "structure"), [c for c in COMPOSITIONS if refused(*c)])
def test_crossings_without_a_meaning_are_refused(init, scaling, structure):
    with pytest.raises(BadInput, match=r"^(init|scaling)="):
        composed(init, scaling, structure)


@pytest.mark.parametrize(("init", "structure"), [c[::2] for c in COMPOSITIONS if c[1] == PLAIN[1] and not refused(*c)])
def test_a_rank_over_the_weight_is_refused(init, structure):
    with pytest.raises(BadInput, match=r"rank=40 .* 1 to 32"):
        adapt(llama(), composed(init, "alpha_over_r", structure), rank=40)


def test_experts_must_divide_the_rank():
    with pytest.raises(BadInput, match=r"rank=6 .*multiple of method.structure.experts"):
        adapt(llama(), method("goat", "structure.experts=4"), rank=6)


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(BadInput, match=r"adapter.targets='query'.*q_proj"):
        adapt(llama(), method("lora"), targets=("query",))
    adapted = adapt(llama(), method("lora"), targets=("q_proj", "v_proj"))
    assert len(adapted.modules) == 4
