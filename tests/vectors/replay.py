"""Replay a folder of official numbers against this code.

    python tests/vectors/replay.py DIR [--only METHODS] [--self-test]

Each case of DIR/manifest.json is built from its inputs alone, through `attach` and the axis values of the presets;
what the code under test computes is compared with the tensors whose role begins with EXPECTED or DERIVED. Nothing
here knows a method's formula: a case says which preset it is, and where its inputs go.

Exit code 1 if a case is over its tolerance or has no implementation. `--only a,b` leaves out the others: a name is a
case's method, its case, both (peft_lora), or its file. `--self-test` perturbs the answers, one tensor at a time, by
1e-3 and exits with 0 only if every one of them is then found wrong.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from ablora.data.encode import Encoded
from ablora.evals._divergence import Compared, against_base, soft_cross_entropy
from ablora.method.attach import Adapted
from ablora.method.export import merged_weights
from ablora.method.factors import expert_products, residual_weight
from ablora.models.rows import lay_out
from presets import method
from vectors.layer import Case, Layer, Tensors, adapt, backward
from vectors.mixture_cases import adamole, hydralora
from vectors.optimizer_cases import lora_fa, lora_plus, mixture_optimizer, preconditioner
from vectors.single_cases import adalora_allocator, adalora_forward, dora
from vectors.start_cases import corda, eva, lora_ga, olora
from vectors.subspace_case import subspace


def pair_layer(case: Case, inputs: Tensors, scaling: str) -> dict[str, Tensor]:
    """A pair at given factors: output, gradients, merged weight."""
    alpha = case["config"]["lora_alpha"]
    layer, adapted = adapt(inputs, method("lora", f"scaling={scaling}", f"scaling.alpha={alpha}"), len(inputs["A"]))
    adapted.write(0, {"linear.A": inputs["A"], "linear.B": inputs["B"].mT})
    out = backward(layer, adapted, inputs)
    return {**out, "grad_B": out["grad_B"].mT, "W_merged": merged_weights(adapted, 0)["linear"]}


def pissa(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    config, out = case["config"], {}
    for prefix, scaling in (("", "alpha_over_r"), ("rs_", "alpha_over_sqrt_r")):
        chosen = method("pissa", f"scaling={scaling}", f"scaling.alpha={config['lora_alpha']}")
        _, adapted = adapt(inputs, chosen, config["rank"])
        out[f"{prefix}product"] = expert_products(adapted, 0, "linear")[0]
        out[f"{prefix}W_res"] = residual_weight(adapted, 0, "linear")
    return out


def milora(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    config, out = case["config"], {}
    for mode, init in (("min", "svd_minor"), ("max", "svd_principal"), ("mid", "svd_middle")):
        chosen = method("milora", f"init={init}", f"scaling.value={config['scaling']}")
        layer, adapted = adapt(inputs, chosen, config["rank"])
        out[f"{mode}_delta"] = expert_products(adapted, 0, "linear")[0]
        out[f"{mode}_W_res"] = residual_weight(adapted, 0, "linear")
        out[f"{mode}_y"] = layer(inputs["x"][None])[0]
    return out


def mixture(case: Case, inputs: Tensors, preset: str, *more: str) -> dict[str, Tensor]:
    """A mixture at given factors and router: output, gradients, balance loss by either convention; and its start."""
    config, out = case["config"], {}
    for name, convention in (("aux_paper", "summed"), ("aux_code", "summed_at_k")):
        chosen = method(
            preset,
            *more,
            "scaling=alpha_over_r",
            f"scaling.alpha={config['lora_alpha']}",
            f"structure.experts={config['num_experts']}",
            f"structure.top_k={config['top_k']}",
            "structure.balance.coefficient=1.0",
            f"structure.balance.convention={convention}",
        )
        layer, adapted = adapt(inputs, chosen, config["rank_total"])
        out["expert_products"] = expert_products(adapted, 0, "linear")
        out["W_res"] = residual_weight(adapted, 0, "linear")
        B = inputs["B"].mT.flatten(0, 1)
        adapted.write(0, {"linear.A": inputs["A"].flatten(0, 1), "linear.B": B, "linear.router": inputs["gate_weight"]})
        out |= penalty(layer, adapted, inputs, name)
        adapted.clear_gradients()
        out |= backward(layer, adapted, inputs)
    experts = config["num_experts"]
    out["grad_A"] = torch.stack(out["grad_A"].chunk(experts))
    out["grad_B"] = torch.stack(out["grad_B"].chunk(experts)).mT
    return {**out, "grad_gate": out["grad_router"]}


def penalty(layer: Layer, adapted: Adapted, inputs: Tensors, name: str) -> dict[str, Tensor]:
    x = inputs["x"].clone().requires_grad_()
    layer(x)
    loss = adapted.penalty(0)
    assert loss is not None
    loss.backward()
    adapted.hand_out_gradients()
    grads = {"grad_gate_aux": adapted.parameters(0)["linear.router"].grad, "grad_x_aux": x.grad}
    return {name: loss, **{key: g.clone() for key, g in grads.items() if g is not None}}


def goat(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    return mixture(case, inputs, "goat", f"init.rho={case['config']['rho']}")


def root_gate(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """A mixture at given factors and router: output and gradients, plain and as if gated by the root."""
    config, out = case["config"], {}
    experts, rank = config["num_experts"], config["num_experts"] * config["rank_per_expert"]
    sizes = (
        f"scaling.alpha={config['lora_alpha']}",
        f"structure.experts={experts}",
        f"structure.top_k={config['top_k']}",
    )
    for name, preset in (("plain", "riemannian_molora"), ("sqrt", "moe_riemannian")):
        layer, adapted = adapt(inputs, method(preset, *sizes), rank)
        A, B = inputs["A"].flatten(0, 1), inputs["B"].mT.flatten(0, 1)
        adapted.write(0, {"linear.A": A, "linear.B": B, "linear.router": inputs["gate_weight"]})
        found = backward(layer, adapted, inputs)
        out |= {f"{key}_{name}": found[key] for key in ("y", "grad_x")}
        out[f"grad_gate_{name}"] = found["grad_router"]
        out[f"grad_A_{name}"] = torch.stack(found["grad_A"].chunk(experts))
        out[f"grad_B_{name}"] = torch.stack(found["grad_B"].chunk(experts)).mT
    return out


def forgetting(case: Case, inputs: Tensors) -> dict[str, Tensor]:
    """Soft cross-entropy, its parts and hard losses: per position, and averaged over the labels of each sequence (all
    its tokens, or those of the response)."""
    base, tuned = inputs["logits_base"], inputs["logits_tuned"].clone().requires_grad_()
    every, real = soft_cross_entropy(base, tuned), inputs["attention_mask"].bool()
    out = {
        "ce_per_position": every.cross_entropy,
        "kl_per_position": every.kl,
        "entropy_base_per_position": every.floor,
        "forgetting_all_real_positions": every.cross_entropy[real].mean(),
        "kl_all_real_positions": every.kl[real].mean(),
    }
    for name, scored in (("next_token", None), ("response", inputs["labels"] != -100)):
        found, reverse = compared(inputs, base, tuned, scored), compared(inputs, tuned, base, scored)
        out[f"forgetting_{name}"] = found.soft.cross_entropy.mean()
        out[f"kl_{name}"] = found.soft.kl.mean()
        out[f"kl_reverse_{name}"] = reverse.soft.kl.mean()
        out[f"nll_base_{name}"], out[f"nll_tuned_{name}"] = found.base_loss.mean(), found.loss.mean()
    (out["grad_logits_tuned"],) = torch.autograd.grad(out["forgetting_next_token"], tuned)
    return out


def compared(inputs: Tensors, base: Tensor, tuned: Tensor, scored: Tensor | None) -> Compared:
    """The code's own layout says which positions predict: each sequence's real tokens are laid out as a run."""
    real = inputs["attention_mask"].bool()
    runs = []
    for row, here in enumerate(real):
        prompt = 0 if scored is None else int((~scored[row][here]).sum())
        runs.append([Encoded(tuple(inputs["input_ids"][row][here].tolist()), max(prompt, 1), str(row))])
    rows = lay_out(runs)
    base, tuned = (
        torch.cat([part[here][mask[: here.sum()]] for part, here, mask in zip(logits, real, rows.predicts)])
        for logits in (base, tuned)
    )
    return against_base(base, tuned, rows.labels)


Build = Callable[[Case, Tensors], dict[str, Tensor]]
BUILDS: dict[tuple[str, str], Build] = {
    ("peft", "lora"): lambda case, inputs: pair_layer(case, inputs, "alpha_over_r"),
    ("peft", "rslora"): lambda case, inputs: pair_layer(case, inputs, "alpha_over_sqrt_r"),
    ("peft", "pissa"): pissa,
    ("peft", "dora"): dora,
    ("peft", "adalora_forward"): adalora_forward,
    ("peft", "adalora_allocator"): adalora_allocator,
    ("peft", "olora"): olora,
    ("peft", "corda"): corda,
    ("peft", "eva"): eva,
    ("lora_ga", "init"): lora_ga,
    ("milora", "svd_init"): milora,
    ("molora", "topk"): lambda case, inputs: mixture(case, inputs, "molora_topk"),
    ("goat", "svd_init"): goat,
    ("adamole", "layer"): adamole,
    ("hydralora", "layer"): hydralora,
    ("peft", "loraplus"): lora_plus,
    ("peft", "lorafa"): lora_fa,
    ("riemannian", "preconditioner"): preconditioner,
    ("moe_riemannian", "layer"): root_gate,
    ("moe_riemannian", "optimizer"): mixture_optimizer,
    ("analysis", "forgetting"): forgetting,
    ("analysis", "subspace"): subspace,
}


class Verdict(NamedTuple):
    """How far one answer is from the code's."""

    tensor: str
    relative: float
    """Largest |difference| over the largest |expected|."""
    within: bool


def roles(case: Case, answers: bool) -> list[str]:
    """Names of the case's answers, or of its inputs."""
    return [n for n, role in case["tensors"].items() if role.startswith(("EXPECTED", "DERIVED")) == answers]


def compare(name: str, found: Tensor | None, expected: Tensor, rtol: float, atol: float) -> Verdict:
    """|found - expected| <= atol + rtol |expected|, for every element; an absent or NaN answer is wrong.

    An atol over half of what the self-test perturbs by would see nothing (peft_eva's, of shares and whitened rows).
    """
    if found is None or found.shape != expected.shape:
        return Verdict(name, float("inf"), False)
    a, b = found.detach().double(), expected.double()
    atol = min(atol, 5e-4 * b.abs().max().clamp(min=1e-3).item())
    relative = ((a - b).abs().max() / b.abs().max().clamp(min=1e-300)).item()
    return Verdict(name, relative, bool(((a - b).abs() <= atol + rtol * b.abs()).all()))


def judge(case: Case, found: Tensors, tensors: Tensors) -> list[Verdict]:
    rtol, atol = case["rtol"], case["atol"]
    return [compare(name, found.get(name), tensors[name], rtol, atol) for name in roles(case, answers=True)]


def undetected(case: Case, found: Tensors, tensors: Tensors) -> list[str]:
    """The answers that could be wrong by 1e-3 of their size without being found out."""
    missed = []
    for name in roles(case, answers=True):
        wrong = tensors[name].double() + 1e-3 * tensors[name].double().abs().max().clamp(min=1e-3)
        if compare(name, found.get(name), wrong, case["rtol"], case["atol"]).within:
            missed.append(name)
    return missed


def selected(cases: list[Case], only: str | None) -> Iterator[Case]:
    wanted = None if only is None else {name.strip().lower() for name in only.split(",")}
    for case in cases:
        pair = f"{case['method']}_{case['case']}"
        names = {case["method"], case["case"], pair, pair.replace("_", "/", 1), Path(case["file"]).stem}
        if wanted is None or wanted & {name.lower() for name in names}:
            yield case


def replay(folder: Path, only: str | None, self_test: bool) -> int:
    """Print a line per case; 0 if all is well."""
    bad = count = 0
    for case in selected(json.loads((folder / "manifest.json").read_text()), only):
        count += 1
        label = f"{case['method']:12s} {case['case']:18s}"
        build = BUILDS.get((case["method"], case["case"]))
        if build is None:
            print(f"{label} no implementation")
            bad += 1
            continue
        tensors = load_file(folder / case["file"])
        found = build(case, {name: tensors[name] for name in roles(case, answers=False)})
        if self_test:
            missed = undetected(case, found, tensors)
            bad += bool(missed)
            print(f"{label} {'not found out: ' + ', '.join(missed) if missed else 'every perturbed answer fails'}")
            continue
        verdicts = judge(case, found, tensors)
        worst = max(verdicts, key=lambda v: (not v.within, v.relative))
        bad += not worst.within
        end = "ok" if worst.within else "FAILED"
        print(f"{label} {worst.relative:.1e} ({worst.tensor}, {len(verdicts)} answers) {end}")
    print(f"{count - bad} of {count} cases {'found out' if self_test else 'pass'}")
    return int(bad > 0 or count == 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="a comma list of methods, cases or files")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    return replay(options.folder, options.only, options.self_test)


if __name__ == "__main__":
    sys.exit(main())
