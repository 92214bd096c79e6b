"""The cases of starts that decompose something else than the weight: QR, and what data shows."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.factors import expert_products, residual_weight
from ablora.method.init.activation import Activation
from ablora.method.init.context import Context
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.spec import AdapterSpec
from ablora.spectra.decompose import decompose
from ablora.spectra.library import Library
from ablora.spectra.statistics import Collected, InputSums, OfInputs
from presets import method
from vectors.layer import Case, Layer, Tensors, adapt


def olora(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    config, out = case["config"], {}
    for prefix, scaling in (("", "alpha_over_r"), ("rs_", "alpha_over_sqrt_r")):
        chosen = method("olora", f"scaling={scaling}", f"scaling.alpha={config['lora_alpha']}")
        _, adapted = adapt(inputs, chosen, config["rank"])
        out |= products(adapted, prefix)
    return out


def products(adapted: Adapted, prefix: str) -> dict[str, Tensor]:
    product, rest = expert_products(adapted, 0, "linear")[0], residual_weight(adapted, 0, "linear")
    return {f"{prefix}product": product, f"{prefix}W_res": rest}


def listen(chosen: LowRank, weight: Tensor, samples: Iterable[Tensor]) -> Collected:
    """What the start sees of a layer while samples (tokens, in) go through it, all their tokens counted."""
    layer, statistic = Layer(weight, None), chosen.init.statistic()
    assert isinstance(statistic, OfInputs)
    sums = InputSums({"linear": layer.linear}, statistic)
    with torch.no_grad(), sums.listening():
        for x in samples:
            sums.next_sample(torch.ones(len(x), dtype=torch.bool))
            layer(x[None])
    return sums.collected()


def corda(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    config, out = case["config"], {}
    for part in ("ipm", "kpm"):
        scale = f"scaling.value={config['scaling']}"
        chosen = method(f"corda_{part}", scale, f"init.damping={config['damp']}")
        seen = listen(chosen, inputs["W"], inputs["X"])
        _, adapted = adapt(inputs, chosen, config["rank"], seen)
        out |= products(adapted, f"{part}_")
        init, sums = chosen.init, seen.of("linear")
        assert isinstance(init, Context)
        out |= {"covariance_f64": sums["square"] / sums["count"], "covariance_damped_f64": init.moment(sums)}
    return out


def lora_ga(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Signs of singular vectors do not cancel in the product: A^T A and B B^T are ours, and the residual is that of
    the factors that the case gives."""
    config, out = case["config"], {}
    scaling = "alpha_over_sqrt_r" if config["use_rslora"] else "alpha_over_r"
    given = {"count": torch.ones((), dtype=torch.float64), "gradient": inputs["G"].double()}
    seen = Collected({"linear": given}, {"linear": "linear"})
    for direction in config["indices"]:
        chosen = method(
            "lora_ga",
            f"scaling={scaling}",
            f"scaling.alpha={config['lora_alpha']}",
            f"init.direction={direction}",
            f"init.gamma={config['stable_gamma']}",
        )
        _, adapted = adapt(inputs, chosen, config["rank"], seen)
        start = adapted.constants(0)
        A, B = start["linear.A0"], start["linear.B0"]
        out |= {f"{direction}_AtA": A.mT @ A, f"{direction}_BBt": B.mT @ B}
        adapted.write(0, {"linear.A0": inputs[f"{direction}_A"], "linear.B0": inputs[f"{direction}_B"].mT})
        out[f"{direction}_W_res"] = residual_weight(adapted, 0, "linear")
    return out


class Side(nn.Module):
    """A model of linear layers side by side."""

    def __init__(self, weights: Tensors):
        super().__init__()
        for name, weight in weights.items():
            self.add_module(name, Layer(weight, None).linear)


def eva(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Ranks are shared out over the three modules, of which q and k read one input. The whitened case saw its batch
    twice."""
    config, out = case["config"], {}
    weights = {module: inputs[f"{module}_weight"] for module in ("q", "k", "o")}
    assert torch.equal(inputs["q_activations"], inputs["k_activations"])
    for prefix, result, passes in (("", "plain", 1), ("whiten_", "whiten_", 2)):
        form = [f"init.whiten={str(bool(prefix)).lower()}", f"scaling.alpha={config['lora_alpha']}"]
        chosen = method("eva", "init.positions=all", f"init.rho={config['rho']}", *form)
        sums = {m: listen(chosen, weights[m], [inputs[f"{m}_activations"]] * passes).of("linear") for m in ("q", "o")}
        seen = Collected(sums, {"q": "q", "k": "q", "o": "o"})
        adapter = AdapterSpec(targets=tuple(weights), compute_dtype="float32")
        adapted = attach(Side(weights), [Member(chosen, config["r"], adapter, 0, seen)], Library(None))
        wanted = config["result"][result]
        for module, record in adapted.records[0].items():
            assert (record.rank, record.scaling) == (wanted["ranks"][module], wanted["scaling"][module])
            A = adapted.parameters(0)[f"{module}.A"].detach()
            out[f"{prefix}{module}_A"] = A
            out[f"{prefix}{module}_A{'_intended' if prefix else '_f64'}"] = A
            init = chosen.init
            assert isinstance(init, Activation)
            whole = init.covariance(seen.of(module))
            shares = decompose(whole, torch.arange(0)).sigma / whole.trace()
            out[f"{module}_explained_variance_ratio"] = shares[: config["max_components"]]
    return out
