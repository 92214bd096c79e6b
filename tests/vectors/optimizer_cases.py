"""The cases of updates: given factors and gradients, what `Update.step` and the run's optimizer make of them.

Answers whose names hold `order`, `delta` and `steps` are asked for by those names alone: nothing is computed here but
the shape of the question.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ablora.method.attach import Adapted, attach
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.spectra.library import Library
from ablora.train.member import make_optimizer
from presets import method

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
SGD = {"optimizer": "sgd", "lr": 1.0}


class Given(NamedTuple):
    """Factors and gradients of one module, rank first; gradients by step."""

    A: Tensor
    B: Tensor
    grads: Sequence[Mapping[str, Tensor]]


class After(NamedTuple):
    """Modules' factors after some steps, and the gradients that the last of them stepped by."""

    factors: list[dict[str, Tensor]]
    grads: list[dict[str, Tensor]]


def stepped(chosen: LowRank, modules: Sequence[Given], steps: int, rank: int, **train: Any) -> After:
    """The run's own optimizer and update over `steps` given gradients."""
    spec = RunSpec(
        method=chosen, model=None, dataset=None, train=TrainSpec(max_steps=10, batch_size=1, **train),
        eval=EvalSpec(tasks={}), adapter=AdapterSpec(compute_dtype="float64"), rank=rank, seed=0,
    )  # fmt: skip
    adapted = _attached(spec, modules)
    optimizer, factors = make_optimizer(spec, adapted.roles(0)), adapted.factors(0)
    for step in range(steps):
        for (params, _), given in zip(factors.values(), modules):
            for role, grad in given.grads[step].items():
                params[role].grad = grad.clone(memory_format=torch.contiguous_format)  # fused steps need it
        chosen.update.step(optimizer, factors, chosen.structure.experts)
    now = [{role: p.detach().clone() for role, p in params.items()} for params, _ in factors.values()]
    grads = [{role: g for role, p in params.items() if (g := p.grad) is not None} for params, _ in factors.values()]
    return After(now, grads)


def _attached(spec: RunSpec, modules: Sequence[Given]) -> Adapted:
    sizes = [(given.A.shape[1], given.B.shape[1]) for given in modules]
    model = nn.Sequential(*(nn.Linear(n, m, bias=False, dtype=torch.float64) for n, m in sizes))
    assert spec.rank is not None
    adapted = attach(model, [Member(spec.method, spec.rank, spec.adapter, 0)], Library(None))
    adapted.write(0, {f"{i}.{role}": getattr(given, role) for i, given in enumerate(modules) for role in "AB"})
    return adapted


def preconditioner(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """One pair: gradients as PEFT leaves them; trajectories of the official AdamWr, whose gradients grow by step."""
    config, out = case["config"], {}
    official = {**config["adamwr"], "optimizer": "adamw_hf", "betas": tuple(config["adamwr"]["betas"])}
    grads = [{"A": j * inputs["grad_A"], "B": j * inputs["grad_B"].mT} for j in (1, 2, 3)]
    given, rank = [Given(inputs["A"], inputs["B"].mT, grads)], config["rank"]
    for reg in config["regs"]:
        label, delta = _label(reg), f"update.delta={reg}"
        (left,) = stepped(method("riemannian_lora", delta), given, 1, rank, **SGD).grads
        out |= {f"precond_A_reg{label}": left["A"], f"precond_B_reg{label}": left["B"].mT}
        for steps in (1, 3):
            chosen = method("riemannian_lora", delta, "update.order=gauss_seidel")
            (now,) = stepped(chosen, given, steps, rank, **official).factors
            for role, factor in (("A", now["A"]), ("B", now["B"].mT)):
                out[f"pilanci_adamwr_reg{label}_{role}_step{steps}"] = factor
    return out


def mixture_optimizer(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Layers of experts: SGDr, the official AdamWr and its simultaneous form, each by what its answers' names say."""
    config, out = case["config"], {}
    experts, rank = config["num_experts"], config["num_experts"] * config["rank_per_expert"]
    by_layer = [inputs["A0"], inputs["B0"], inputs["grad_A"].transpose(0, 1), inputs["grad_B"].transpose(0, 1)]
    modules = [
        Given(**_blocks(A, B), grads=[_blocks(*grads) for grads in zip(to_A, to_B)])
        for A, B, to_A, to_B in zip(*by_layer)
    ]
    adamw = {"optimizer": "adamw_hf", "betas": tuple(config["betas"]), "eps": config["eps"], "lr": config["lr"],
             "weight_decay": config["weight_decay"]}  # fmt: skip
    for name, role in case["tensors"].items():
        found = re.fullmatch(r"(sgdr|adamwr)(_jacobi|_correct_bias)?_reg([0-9.e-]+)_A_step(\d+)", name)
        if found is None or not role.startswith(("EXPECTED", "DERIVED")):
            continue
        rule, variant, reg, steps = found.groups()
        order = "jacobi" if rule == "sgdr" or variant == "_jacobi" else "gauss_seidel"
        train = {"optimizer": "sgd", "lr": config["lr"]} if rule == "sgdr" else adamw
        if rule == "adamwr":
            train = {**train, "correct_bias": variant == "_correct_bias" or config["correct_bias_default"]}
        chosen = method("riemannian_molora", f"update.delta={reg}", f"update.order={order}",
                        f"structure.experts={experts}", "structure.top_k=1")  # fmt: skip
        after = stepped(chosen, modules, int(steps), rank, **train).factors
        out[name] = torch.stack([torch.stack(now["A"].chunk(experts)) for now in after])
        out[name.replace("_A_", "_B_")] = torch.stack([torch.stack(now["B"].chunk(experts)).mT for now in after])
    return out


def _blocks(A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """Experts' factors as the blocks of one, rank first."""
    return {"A": A.flatten(0, 1), "B": B.mT.flatten(0, 1)}


def lora_fa(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    config = case["config"]
    chosen = method("lora_fa", f"scaling.alpha={config['lora_alpha']}")
    modules = [
        Given(A, B.mT, [{"B": grad.mT} for grad in grads])
        for A, B, grads in zip(inputs["A"], inputs["B"], inputs["grad_B"].transpose(0, 1))
    ]
    train = {key: config[key] for key in ("lr", "weight_decay", "eps", "correct_bias")}
    train |= {"optimizer": "adamw_hf", "betas": tuple(config["betas"])}
    one, three = (stepped(chosen, modules, steps, config["rank"], **train) for steps in (1, 3))
    assert all(torch.equal(now["A"], given.A) for now, given in zip(three.factors, modules))
    return {
        "precond_grad_B": torch.stack([grads["B"].mT for grads in one.grads]),
        "B_step1": torch.stack([now["B"].mT for now in one.factors]),
        "B_step3": torch.stack([now["B"].mT for now in three.factors]),
    }


def lora_plus(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Rate and decay of every tensor of PEFT's model, given to the update by role; of the expected table the shapes
    alone are read."""
    config = case["config"]
    chosen = method("lora_plus", f"update.ratio={config['loraplus_lr_ratio']}",
                    f"update.embedding_lr={config['loraplus_lr_embedding']}")  # fmt: skip
    tensors = {name: Parameter(torch.zeros(case["expected_json"][name]["shape"])) for name in config["names"]}
    by_role: dict[str, list[Parameter]] = {}
    for name, tensor in tensors.items():
        found = re.search(r"lora_(embedding_)?[AB]", name)
        role = found[0].removeprefix("lora_") if found else name.rpartition(".")[2]
        by_role.setdefault(role, []).append(tensor)
    train = TrainSpec(lr=config["lr"], weight_decay=config["loraplus_weight_decay"], max_steps=1, batch_size=1)
    spec = RunSpec(method=chosen, model=None, dataset=None, train=train, eval=EvalSpec(tasks={}),
                   adapter=AdapterSpec(), rank=4, seed=0)  # fmt: skip
    groups = make_optimizer(spec, by_role).param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    return {
        key: torch.tensor([of[id(tensor)][key] for tensor in tensors.values()], dtype=torch.float64)
        for key in ("lr", "weight_decay")
    }


def _label(reg: float) -> str:
    """1e-6, 1e-2, 1: as the answers' names write it."""
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{reg:.0e}").removesuffix("e+0")
