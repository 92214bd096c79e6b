"""The cases of AdaMoLE and HydraLoRA."""

import torch
from torch import Tensor

from presets import method
from vectors.layer import Case, Tensors, adapt, backward


def adamole(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Routing, output and gradients at given factors; the balance loss by either form, gradients of the code's."""
    config, out = case["config"], {}
    experts = config["num_experts"]
    for name, form in (("aux_p", "probability"), ("aux", "excess")):
        chosen = method(
            "adamole",
            f"scaling.alpha={config['lora_alpha']}",
            f"structure.experts={experts}",
            f"structure.routing.max_threshold={config['max_threshold']}",
            f"structure.routing.balance_on={form}",
            "structure.balance.coefficient=1.0",
        )
        layer, adapted = adapt(inputs, chosen, experts * config["rank_per_expert"])
        given = {
            "A": inputs["A"].flatten(0, 1),
            "B": inputs["B"].mT.flatten(0, 1),
            "router": inputs["gate_weight"],
            "threshold": inputs["threshold_weight"],
            "threshold_bias": inputs["threshold_bias"],
        }
        adapted.write(0, {f"linear.{role}": tensor for role, tensor in given.items()})
        x = inputs["x"].clone().requires_grad_()
        adapted.state.per_token = True
        layer(x)
        stats, loss = adapted.stats(0)["linear"], adapted.penalty(0)
        assert loss is not None
        loss.backward()
        adapted.hand_out_gradients()
        grads = {role: adapted.parameters(0)[f"linear.{role}"].grad for role in given}
        out |= {name: loss, "selected": stats["chosen"], "weights": stats["weights"], "grad_x_aux": x.grad}
        out |= {f"{as_named(role)}_aux": grad.clone() for role, grad in grads.items() if grad is not None}
        adapted.clear_gradients()
    found = backward(layer, adapted, inputs)
    out |= {as_named(key.removeprefix("grad_")): value for key, value in found.items() if key.startswith("grad_")}
    out |= {"y": found["y"], "grad_A": torch.stack(found["grad_A"].chunk(experts))}
    return out | {"grad_B": torch.stack(found["grad_B"].chunk(experts)).mT}


def as_named(role: str) -> str:
    return "grad_" + {"router": "gate", "threshold": "threshold_weight"}.get(role, role)


def hydralora(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Output and gradients at given factors."""
    config = case["config"]
    heads = config["num_heads"]
    chosen = method("hydralora", f"scaling.alpha={config['lora_alpha']}", f"structure.experts={heads}")
    layer, adapted = adapt(inputs, chosen, heads * config["rank"])
    given = {"A": inputs["A"], "B": inputs["B"].mT.flatten(0, 1), "router": inputs["route_weight"]}
    adapted.write(0, {f"linear.{role}": tensor for role, tensor in given.items()})
    found = backward(layer, adapted, inputs)
    grad_B = torch.stack(found["grad_B"].chunk(heads)).mT
    return {**found, "grad_route": found["grad_router"], "grad_B": grad_B}
