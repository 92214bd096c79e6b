"""Mixtures against loops over their experts, one token at a time; invariants by their letter in the survey."""

import pytest
import torch
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.factors import expert_products, residual_weight
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.method.structure._base import Unmergeable
from ablora.method.structure.balance import Balance
from ablora.spec import AdapterSpec, BadInput
from ablora.spectra.library import Library
from presets import fitting, method

MIXTURES = ("molora", "molora_topk", "adamole", "hydralora", "goat", "goat_s", "goat_top_p", "goat_shared_expert")
ZERO_B = ("molora", "molora_topk", "adamole", "hydralora")


class Chain(nn.Module):
    """Two linear layers, so that penalties add up over modules."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(24, 20), nn.Linear(20, 24, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def tokens(count: int = 30) -> Tensor:
    return torch.randn(1, count, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def chain(chosen: LowRank, moved: float = 0.3, seed: int = 0) -> tuple[Chain, Adapted]:
    model = Chain().double()
    spec = AdapterSpec(targets=("first", "second"), compute_dtype="float64")
    adapted = attach(model, [Member(chosen, fitting(chosen), spec, seed)], Library(None))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in adapted.parameters(0).values():
            p.add_(moved * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model, adapted


def set_router(adapted: Adapted, to: float) -> None:
    routers = {k: to * p.detach() for k, p in adapted.parameters(0).items() if k.endswith("router")}
    adapted.write(0, routers)


def report(adapted: Adapted, x: Tensor) -> dict[str, Tensor]:
    """What the first layer's structure says of single tokens."""
    adapted.state.per_token = True
    with torch.no_grad():
        adapted.model(x)
    return dict(adapted.stats(0)["first"])


def loop_weights(chosen: LowRank, adapted: Adapted, name: str, x: Tensor) -> list[float]:
    """One token's gate weights by the rule's own words."""
    structure, own = chosen.structure, adapted.parameters(0)
    p = (own[f"{name}.router"] @ x).softmax(0).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    rule = type(structure.rule).__name__
    score, kept = list(p), order
    if rule == "TopK":
        kept = order[: structure.top_k]
    elif rule == "TopP":
        kept, held = [], 0.0
        for i in order:
            if held >= structure.routing.top_p:
                break
            kept.append(i)
            held += p[i]
    elif rule == "Threshold":
        raw = (own[f"{name}.threshold"][0] @ x + own[f"{name}.threshold_bias"][0]).item()
        tau = 1 / len(p) / (1 + 2.718281828459045**-raw)
        score = [v - tau for v in p]
        kept = [i for i in order if score[i] >= 0]
    total = sum(score[i] for i in kept)
    weights = [score[i] / total if i in kept else 0.0 for i in range(len(p))]
    return [1.0, *weights] if structure.shared_expert else weights


@pytest.mark.parametrize("preset", MIXTURES)
def test_m5_one_product_equals_a_loop_over_experts_and_tokens(preset):
    chosen = method(preset)
    _, adapted = chain(chosen)
    layer, x = adapted.modules["first"], tokens()
    products, residual = expert_products(adapted, 0, "first"), residual_weight(adapted, 0, "first")
    found = layer(x)[0].detach()
    for x_t, y_t in zip(x[0], found):
        weights = loop_weights(chosen, adapted, "first", x_t)
        expected = residual @ x_t + layer.base.bias + sum(w * (P @ x_t) for w, P in zip(weights, products, strict=True))
        torch.testing.assert_close(y_t, expected.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("preset", MIXTURES)
def test_m3_weights_sum_to_1_and_experts_have_no_order(preset):
    chosen = method(preset)
    _, adapted = chain(chosen)
    layer, x = adapted.modules["first"], tokens()
    before, stats, shared = layer(x).detach(), report(adapted, x), chosen.structure.shared_expert
    torch.testing.assert_close(stats["weights"].sum(-1), torch.full((30,), 1.0 + shared).double())
    assert (stats["chosen"].sum(-1) >= 1 + shared).all()
    assert ((stats["weights"] > 0) <= (stats["chosen"] > 0)).all()
    if chosen.structure.top_k is not None:
        assert (stats["weights"] > 0).sum(-1).eq(chosen.structure.top_k + shared).all()
    order = torch.randperm(chosen.structure.routed, generator=torch.Generator().manual_seed(3))
    everyone = torch.cat([torch.zeros(1, dtype=torch.long), order + 1]) if shared else order
    mine = {**adapted.parameters(0), **adapted.constants(0)}
    size = len(mine["first.B"]) // chosen.structure.experts
    rows = (everyone[:, None] * size + torch.arange(size)).flatten()
    own = ("B", "scale") if chosen.structure.shared_a else ("A", "B", "A0", "B0", "scale")
    moved = {f"first.{r}": mine[f"first.{r}"].detach()[rows] for r in own if f"first.{r}" in mine}
    adapted.write(0, {**moved, "first.router": mine["first.router"].detach()[order]})
    torch.testing.assert_close(layer(x).detach(), before, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("preset", ["molora", "molora_topk", "adamole", "hydralora"])
def test_m1_one_expert_is_lora(preset):
    fields = ["structure.experts=1", *(["structure.top_k=1"] if preset == "molora_topk" else [])]
    _, adapted = chain(method(preset, "scaling.alpha=16", *fields))
    _, lora = chain(method("lora", "scaling.alpha=16"))
    lora.write(0, {f"first.{r}": adapted.parameters(0)[f"first.{r}"].detach() for r in "AB"})
    x = tokens()
    torch.testing.assert_close(adapted.modules["first"](x), lora.modules["first"](x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", ["molora", "molora_topk", "adamole"])
def test_m2_identical_experts_are_one_lora(preset):
    chosen = method(preset, "structure.experts=4")
    _, adapted = chain(chosen)
    mine = adapted.parameters(0)
    alike = {f"first.{r}": mine[f"first.{r}"].detach()[:2].repeat(4, 1) for r in "AB"}
    adapted.write(0, alike)
    layer, x = adapted.modules["first"], tokens()
    expected = layer.base(x) + x @ expert_products(adapted, 0, "first")[0].T
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-12)


def router_gradients(preset: str, *overrides: str, moved: float) -> Tensor:
    model, adapted = chain(method(preset, *overrides), moved)
    model(tokens()).square().sum().backward()
    adapted.hand_out_gradients()
    found = adapted.parameters(0)["first.router"].grad
    assert found is not None
    return found


def test_m4_one_of_k_gives_the_router_no_task_gradient_and_all_of_k_is_soft():
    one, two = (router_gradients("molora_topk", f"structure.top_k={k}", moved=0.3).norm() for k in (1, 2))
    assert one < 1e-12 * two
    balance = ("structure.balance.coefficient=0",)
    dense = chain(method("molora_topk", "structure.top_k=8", *balance))
    soft = chain(method("molora_topk", "structure=soft_experts", "structure.router_std=null", *balance))
    assert dense[1].parameters(0).keys() == soft[1].parameters(0).keys()
    torch.testing.assert_close(dense[0](tokens()), soft[0](tokens()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("preset", ZERO_B)
def test_g2_a_zero_b_gives_the_router_no_task_gradient_at_first(preset):
    model, adapted = chain(method(preset), moved=0.0)
    model(tokens()).square().sum().backward()
    adapted.hand_out_gradients()
    for name, p in adapted.parameters(0).items():
        if not name.endswith(".B"):
            assert p.grad is not None
            assert p.grad.abs().max() == 0, name


@pytest.mark.parametrize("preset", ["goat", "goat_s", "goat_top_p", "goat_shared_expert", "goat_random"])
def test_g2_a_start_gives_the_router_a_gradient(preset):
    assert router_gradients(preset, moved=0.0).abs().max() > 0


@pytest.mark.parametrize("preset", ["goat", "goat_s", "goat_top_p", "goat_shared_expert"])
def test_i3_the_start_is_subtracted_at_its_expected_gates(preset):
    """y - W x = sum_i (w_i - e_i) U_i S_i V_i^T x / rho: 0 on average over routers, smaller with rho, whatever s."""
    x = tokens()[:, :8]

    def deviation(seed: int, rho: float) -> Tensor:
        _, adapted = chain(method(preset, f"init.rho={rho}"), moved=0.0, seed=seed)
        layer = adapted.modules["first"]
        return (layer(x) - layer.base(x)).detach()

    many = torch.stack([deviation(seed, 10.0) for seed in range(40)])
    assert many.mean(0).norm() < 0.4 * many.flatten(1).norm(dim=1).mean()  # 40 ** -0.5 is 0.16
    torch.testing.assert_close(deviation(1, 1e4), many[1] / 1e3, rtol=1e-9, atol=1e-12)


def test_i3_the_expected_gate_is_what_random_routers_give():
    """The rules' promise that the subtraction rests on: E[w_i] = 1/E over routers, for every rule."""
    for preset in ("goat", "goat_top_p", "molora", "adamole"):
        weights = []
        for seed in range(24):
            _, adapted = chain(method(preset), moved=0.0, seed=seed)
            weights.append(report(adapted, tokens(60))["weights"].mean(0))
        mean, error = torch.stack(weights).mean(0), torch.stack(weights).std(0) / 24**0.5
        assert ((mean - 1 / len(mean)).abs() < 4 * error + 1e-12).all(), preset


@pytest.mark.parametrize("variant", ["own", "principal", "minor", "random"])
def test_goat_s_scales_by_the_segments_and_moves_no_product(variant):
    """s_j = s_0 sqrt(sigma_0 / sigma_j); factors start with their own s_j, so that products are those of any scale."""
    chosen, plain = method("goat_s", f"init.variant={variant}"), method("goat", f"init.variant={variant}")
    (_, own), (_, other) = chain(chosen, moved=0.0), chain(plain, moved=0.0)
    for name in own.modules:
        products = expert_products(own, 0, name)
        torch.testing.assert_close(products, expert_products(other, 0, name), rtol=1e-6, atol=1e-9)
        sums = torch.linalg.svdvals(products).sum(-1)
        scales, first = own.records[0][name].scaling, other.records[0][name].scaling
        assert isinstance(scales, tuple)
        expected = first * (sums[0] / sums).sqrt()
        torch.testing.assert_close(torch.tensor(scales).double(), expected, rtol=1e-5, atol=0.0)
        A = own.factors(0)[name].params["A"].detach().unflatten(0, (8, -1))
        torch.testing.assert_close(A.norm(dim=(1, 2)).square() * expected, sums, rtol=1e-5, atol=0.0)


def test_goat_s_on_a_pair_is_its_first():
    _, pair = chain(method("lora", "scaling=goat_s"), moved=0.0)
    _, goat = chain(method("lora", "scaling=goat"), moved=0.0)
    assert pair.records == goat.records


@pytest.mark.parametrize("init", ["svd_principal", "svd_minor", "orthogonal", "qr"])
def test_heads_that_start_alike_are_the_base_bit_for_bit(init):
    model, adapted = chain(method("hydralora", f"init={init}"), moved=0.0)
    assert torch.equal(model(tokens()), Chain().double()(tokens()))
    model(tokens()).square().sum().backward()
    adapted.hand_out_gradients()
    assert all(p.grad is not None for p in adapted.parameters(0).values())


def test_heads_share_one_a():
    """r_e n + N r_e m + N n numbers in a module (m, n)."""
    _, adapted = chain(method("hydralora", "structure.experts=4"))
    assert adapted.parameters(0)["first.A"].shape == (2, 24)
    assert adapted.records[0]["first"].parameters == 2 * 24 + 8 * 20 + 4 * 24


@pytest.mark.parametrize("preset", MIXTURES)
def test_m7_no_mixture_merges(preset):
    _, adapted = chain(method(preset))
    with pytest.raises(Unmergeable):
        method(preset).structure.merge(torch.zeros(20, 24), adapted.factors(0)["first"].params, {})


def official_aux(adapted: Adapted, excess: bool) -> Tensor:
    """The reference's summed form, from the inputs that reach each router: sum over modules of E sum_i f_i P_i."""
    seen: dict[str, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda _, a, __, name=name: seen.update({name: a[0][0]}))
             for name, layer in adapted.modules.items()]  # fmt: skip
    adapted.model(tokens())
    for hook in hooks:
        hook.remove()
    total = torch.zeros((), dtype=torch.float64)
    for name, layer in adapted.modules.items():
        params = layer.groups[0].stack.leaves  # type: ignore[union-attr]
        p = (seen[name] @ params["router"][0].T).softmax(-1)
        experts = p.shape[1]
        if "threshold" in params:
            tau = (seen[name] @ params["threshold"][0].T + params["threshold_bias"][0]).sigmoid() / experts
            f, judged = (p >= tau).double().mean(0), p - tau if excess else p
        else:
            f, judged = torch.zeros_like(p).scatter(1, p.topk(2, dim=-1).indices, 1.0).mean(0), p
        total = total + experts * (f * judged.mean(0)).sum()
    return 1e-3 * total


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [("molora_topk", ()), ("goat", ()), ("adamole", ()), ("adamole", ("structure.routing.balance_on=excess",))],
)
def test_m6_the_penalty_is_the_summed_official_one_in_value_and_gradient(preset, overrides):
    """Over two modules, with the papers' 1e-3."""
    found = []
    for official in (False, True):
        model, adapted = chain(method(preset, *overrides))
        model(tokens())
        loss = official_aux(adapted, bool(overrides)) if official else adapted.penalty(0)
        assert loss is not None
        loss.backward()
        adapted.hand_out_gradients()
        routers = [p for name, p in adapted.parameters(0).items() if name.endswith(("router", "threshold"))]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in routers]
        found.append((loss.detach(), grads))
    (ours, mine), (theirs, reference) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)
    assert all(g.any() for g in mine) == (preset != "adamole" or bool(overrides)), "p alone says nothing of thresholds"


@pytest.mark.parametrize("preset", ["molora_topk", "adamole", "goat_top_p", "goat_shared_expert"])
def test_m6_a_router_without_opinion_is_balanced_at_1(preset):
    _, adapted = chain(method(preset))
    set_router(adapted, 0.0)
    assert report(adapted, tokens())["balance"].item() == pytest.approx(1, rel=1e-12)


def test_m6_coefficients_are_converted():
    """GOAT's 1e-3 over 224 modules at k = 2 is 0.448 of a loss that is 1 when balanced."""
    share = Balance(coefficient=1e-3, convention="summed_at_k").of_module(224, 2)
    assert 224 * share == pytest.approx(0.448)
    assert 224 * Balance(coefficient=1e-3, convention="summed").of_module(224, 2) == pytest.approx(0.224)
    assert 224 * Balance(coefficient=1e-3, convention="normalised").of_module(224, 2) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("structure.top_k=null",), "top_k=None .*one of the two"),
        (("structure.top_k=9",), r"top_k=9 .*routed experts \(8\)"),
        (("structure=shared_expert", "structure.top_k=8"), r"top_k=8 .*routed experts \(7\)"),
        (("structure=shared_expert", "structure.experts=1"), "experts=1 .*at least 2"),
        (("structure=top_p_experts", "structure.routing.top_p=0"), "top_p=0.*above 0"),
        (("structure=threshold_experts", "structure.routing.max_threshold=0.5"), "max_threshold=0.5 .*0.125"),
        (("structure=shared_a", "structure.shared_expert=true"), "shared_expert=True .*shared_a"),
        (("structure=shared_a", "structure.router_gradient=sqrt"), "router_gradient='sqrt' .*shared_a"),
        (("structure=shared_a", "init=svd_segments"), "init='SvdSegments' .*shared_a"),
        (("structure=shared_a", "update=riemannian"), "update='Riemannian' .*shared_a"),
        (("scaling=goat_s",), "scaling='GoatS with ZeroB' .*svd_segments"),
    ],
)
def test_what_does_not_combine_says_what_does(overrides, says):
    with pytest.raises(BadInput, match=says):
        method("molora_topk", *overrides)
