"""The cases of DoRA, and of AdaLoRA over several modules."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.export import merged_weights
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.method.structure._allocation import scores
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from presets import method
from vectors.layer import Case, Tensors, adapt


def dora(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    layer, adapted = adapt(inputs, method("dora", f"scaling.alpha={case['config']['lora_alpha']}"), len(inputs["A"]))
    out = {"magnitude_init": adapted.parameters(0)["linear.magnitude"].detach().clone()}
    given = {"A": inputs["A"], "B": inputs["B"].mT, "magnitude": inputs["magnitude"]}
    adapted.write(0, {f"linear.{role}": tensor for role, tensor in given.items()})
    x = inputs["x"].clone().requires_grad_()
    y = layer(x)
    (y * inputs["C"]).sum().backward()
    assert x.grad is not None
    grads = gradients(adapted)
    return {
        **out,
        "y": y,
        "grad_x": x.grad,
        "grad_A": grads["linear.A"],
        "grad_B": grads["linear.B"].mT,
        "grad_magnitude": grads["linear.magnitude"],
        "W_merged": merged_weights(adapted, 0)["linear"],
    }


def gradients(adapted: Adapted) -> dict[str, Tensor]:
    adapted.hand_out_gradients()
    return {name: p.grad.clone() for name, p in adapted.parameters(0).items() if p.grad is not None}


class Modules(nn.Module):
    """Linear layers that see the same input."""

    def __init__(self, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]):
        super().__init__()
        for name, weight in weights.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=name in biases, dtype=weight.dtype)
            linear.weight.data.copy_(weight)
            if name in biases:
                linear.bias.data.copy_(biases[name])
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x) for name, layer in self.named_children()}


def adapt_all(model: Modules, chosen: LowRank, rank: int) -> Adapted:
    return attach(model, [Member(chosen, rank, AdapterSpec(compute_dtype="float64"), 0)], Library(None))


def adalora_forward(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Output, penalty, and gradients of the task alone and of both."""
    config = case["config"]
    names = list(config["modules"])
    model = Modules({n: inputs[f"{n}_W"] for n in names}, {n: inputs[f"{n}_b"] for n in names})
    chosen = method(
        "adalora",
        "scaling=constant",
        f"scaling.value={config['effective_scaling']}",
        f"structure.orthogonality.coefficient={config['orth_reg_weight']}",
        "structure.orthogonality.convention=norm_mean",
    )
    adapted = adapt_all(model, chosen, config["init_r"])
    for n in names:
        adapted.write(0, {f"{n}.A": inputs[f"{n}_A"], f"{n}.B": inputs[f"{n}_B"].mT, f"{n}.E": inputs[f"{n}_E"]})
    out: dict[str, Tensor] = {}
    for suffix in ("", "_with_orth"):
        x = inputs["x"].clone().requires_grad_()
        y = model(x)
        loss = torch.stack([(y[n] * inputs[f"{n}_C"]).sum() for n in names]).sum()
        penalty = adapted.penalty(0)
        assert penalty is not None
        (loss + penalty if suffix else loss).backward()
        grads = gradients(adapted)
        for n in names:
            out[f"{n}_y"] = y[n]
            for role in "ABE":
                grad = grads[f"{n}.{role}"]
                out[f"{n}_grad_{role}{suffix}"] = grad.mT if role == "B" else grad
        if not suffix:
            assert x.grad is not None
            out |= {"grad_x": x.grad, "orth_reg_weighted": penalty}
        adapted.clear_gradients()
    return out


def adalora_allocator(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """The given gradients' descent by SGD, and after each of its steps what stays."""
    config = case["config"]
    steps, names = config["total_step"], config["module_order"]
    chosen = method(
        "adalora",
        f"structure.target_rank={config['target_r']}",
        f"structure.schedule.warmup={config['tinit'] / steps}",
        f"structure.schedule.settle={config['tfinal'] / steps}",
        f"structure.schedule.every={config['deltaT']}",
        f"structure.beta1={config['beta1']}",
        f"structure.beta2={config['beta2']}",
    )
    model = Modules({n: torch.zeros(config["modules"][n], dtype=torch.float64) for n in names}, {})
    adapted = adapt_all(model, chosen, config["init_r"])
    factors, state = adapted.factors(0), {}
    for n in names:
        adapted.write(0, {f"{n}.A": inputs[f"{n}_A0"], f"{n}.B": inputs[f"{n}_B0"].mT, f"{n}.E": inputs[f"{n}_E0"]})
    schedule = chosen.structure.schedule
    every, scored, known = [], [], torch.zeros(len(names), config["init_r"], dtype=torch.float64)
    for step in range(1, steps + 1):
        for parameter, grad in given(adapted, inputs, names, step):
            parameter.grad = grad
            parameter.data -= config["sgd_lr"] * grad
        chosen.structure.after_step(factors, state, step, steps)
        if step < schedule.end(steps):
            known = torch.stack([scores(state, factors[n].params, n) for n in names])
        scored.append(known if step <= schedule.end(steps) else torch.zeros_like(known))
        every.append(torch.stack([factors[n].params["E"][:, 0].detach().clone() for n in names]))
    full, target = config["init_r"] * len(names), config["target_r"] * len(names)
    order = range(1, steps + 1)
    masked = torch.tensor([schedule.prunes(t, steps) or t > schedule.end(steps) for t in order])
    E = torch.stack(every)
    return {
        "budgets": torch.tensor([schedule.budget(t, steps, full, target) for t in order]),
        "mask_applied": masked.long(),
        "scores": torch.stack(scored),
        "E_after": E,
        "masks": torch.where(masked[:, None, None], (E != 0).long(), -1),
    }


def given(adapted: Adapted, inputs: Tensors, names: list[str], step: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for n in names:
        for role in "ABE":
            grad = inputs[f"{n}_grad_{role}"][step - 1]
            yield adapted.parameters(0)[f"{n}.{role}"], grad.mT if role == "B" else grad
