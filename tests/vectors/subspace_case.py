"""The case of subspaces, projections and effective ranks, through the measures that `ablora analyse` takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablora.method.peft_config import PeftConfig
from ablora.spectra.decompose import decompose as decompose_weight
from ablora.spectra.library import Library
from ablora_analysis.measure.adapters import WHOLE, Part
from ablora_analysis.measure.base_view import BaseView
from ablora_analysis.measure.projection import projected_norm
from ablora_analysis.measure.rows import Seen, projection_rows, see, spectrum_rows
from ablora_analysis.measure.spectrum import effective_ranks
from ablora_analysis.measure.subspace import phi
from ablora_analysis.measure.update import Update, decompose

RANKS = {
    "entropy_sigma": "entropy_rank",
    "entropy_sigma2": "energy_entropy_rank",
    "stable_rank": "stable_rank",
    "participation": "participation_rank",
    "count_1pct": "count_1pct",
    "count_10pct": "count_10pct",
    "nuclear_over_spectral": "nuclear_rank",
}


def subspace(case: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both adapters as PEFT would save them, seen against W."""
    view = BaseView("W", inputs["W"], max(len(inputs["A1"]), len(inputs["A2"])), Library(None))
    one, two = (_seen(case, inputs, number, view) for number in "12")
    first, second = (_vectors(inputs, number) for number in "12")
    out: dict[str, Any] = {
        "phi_dW_right": phi(one.d.v, two.d.v),
        "phi_dW_left": phi(one.d.u, two.d.u),
        "phi_A_right": phi(first["A"], second["A"]),
        "phi_B_left": phi(first["B"], second["B"]),
        "phi_self_dW1_right": phi(one.d.v, one.d.v),
        "singular_values_dW1": one.d.sigma,
        "singular_values_dW2": two.d.sigma,
        "norm_W": view.norm,
        **_ranks("W", effective_ranks(view.sigma)),
        **_of_update("dW1", one, inputs),
        **_of_update("dW2", two, inputs),
    }
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in out.items()}


def _seen(case: Mapping[str, Any], inputs: Mapping[str, Tensor], number: str, view: BaseView) -> Seen:
    A, B = inputs[f"A{number}"], inputs[f"B{number}"]
    tree = {"peft_type": "LORA", "r": case["config"][f"r{number}"], "lora_alpha": case["config"]["alpha"]}
    s = PeftConfig(Path("adapter_config.json"), tree).scale("W")
    update = Update(s * B, A)
    return see(WHOLE, Part(update, len(A), ""), decompose(update), view)


def _vectors(inputs: Mapping[str, Tensor], number: str) -> dict[str, Tensor]:
    A, B = inputs[f"A{number}"], inputs[f"B{number}"]
    every = torch.arange(len(A))
    return {"A": decompose_weight(A, every).v, "B": decompose_weight(B, every).u}


def _of_update(name: str, seen: Seen, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    norms = {row["basis"]: row for row in projection_rows(seen)}
    values = {row["measure"]: row["value"] for row in spectrum_rows(seen)}
    random = decompose_weight(inputs["random_matrix"], torch.arange(seen.rank))
    return {
        f"{name}_proj_dW": norms["update"]["norm_w"],
        f"{name}_proj_W": norms["top"]["norm_w"],
        f"{name}_proj_random": projected_norm(inputs["W"], random.u, random.v),
        f"{name}_norm_dW": values["frobenius"],
        f"{name}_amplification": norms["update"]["amplification"],
        **_ranks(name, values),
    }


def _ranks(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_erank_{theirs}": values[ours] for theirs, ours in RANKS.items()}
