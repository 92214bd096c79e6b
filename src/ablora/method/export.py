"""The adapter on disk: exact factors of our own, and beside them PEFT's layout where PEFT can express the update.

ablora_adapter.safetensors   every trainable and fixed tensor by `module.role`, as trained (float32)
ablora_adapter.json          {"schema", "modules": {...}, "peft": whether the next two exist}
adapter_model.safetensors    PEFT's LoRA tensors: for a started pair [dB B0] and [A; dA], of rank 2r; DoRA's magnitudes
adapter_config.json          PEFT's LoraConfig for them
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ablora.method.adaptation import ModuleRecord
from ablora.method.layer import turned, weight_of
from ablora.method.structure._base import Unmergeable
from ablora.store.atomic import Corrupted, replace, write_json

if TYPE_CHECKING:
    from ablora.method.attach import Adapted

SCHEMA = 1
EXACT = "ablora_adapter.safetensors"


def save_adapter(adapted: "Adapted", member: int, folder: Path) -> None:
    """Write one member's adapter; each file appears whole."""
    exact = {**adapted.parameters(member), **adapted.constants(member)}
    peft = peft_tensors(adapted, member)
    if peft is not None:
        tensors, config = peft
        save_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", config)
    save_exact(folder, exact, adapted.records[member], peft is not None)


def save_exact(folder: Path, tensors: Mapping[str, Tensor], records: Mapping[str, ModuleRecord], peft: bool) -> None:
    """Write what was trained, and what was realised in each module; `peft`: whether PEFT's layout lies beside it."""
    save_tensors(folder / EXACT, tensors)
    modules = {name: record._asdict() for name, record in records.items()}
    write_json(folder / "ablora_adapter.json", {"schema": SCHEMA, "modules": modules, "peft": peft})


def load_adapter(adapted: "Adapted", member: int, folder: Path) -> None:
    """Put a saved adapter into a member that was attached with the same method; nothing is decomposed again."""
    path = folder / EXACT
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise Corrupted(str(path), str(error), "the factors that save_adapter wrote") from error
    wanted = {**adapted.parameters(member), **adapted.constants(member)}
    if (missing := sorted(wanted.keys() - tensors.keys())) or (extra := sorted(tensors.keys() - wanted.keys())):
        found = f"missing {missing[:3]}" if missing else f"extra {extra[:3]}"
        raise Corrupted(str(path), found, "exactly the tensors of the attached method")
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise Corrupted(str(path), f"not finite: {bad[:3]}", "finite factors")
    adapted.write(member, tensors)


def peft_tensors(adapted: "Adapted", member: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, LoraConfig) of the same update as a LoRA adapter; None where the update depends on the token.

    PEFT's scaling is alpha / r; s may differ between modules, so it is folded into B, and alpha = r, also in each
    module whose rank is another. A module of rank 0 is no target.
    """
    method = adapted.members[member].method
    if method is None:
        return None
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    layers = adapted.adapted(member)
    for name in layers:
        try:
            A, B, magnitude = method.structure.exported(*module_tensors(adapted, member, name))
        except Unmergeable:
            return None
        if len(A) == 0:
            continue
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = A, B.mT
        if magnitude is not None:
            tensors[f"{prefix}.lora_magnitude_vector"] = magnitude
        ranks[name] = A.shape[0]
    turned_round = any(isinstance(layer.base, Conv1D) for layer in layers.values())
    config = _peft_config(ranks, turned_round, any(name.endswith("magnitude_vector") for name in tensors))
    return {k: t.detach().to(torch.float32).contiguous() for k, t in tensors.items()}, config


def _peft_config(ranks: Mapping[str, int], fan_in_fan_out: bool, dora: bool) -> dict[str, Any]:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: own for name, own in sorted(ranks.items()) if own != rank}
    return {
        "use_dora": dora,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": sorted(ranks),
        "inference_mode": True,
    }


def module_tensors(adapted: "Adapted", member: int, module: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, trained or held; fixed tensors) of one member in one module, by role."""
    params, frozen = adapted.factors(member)[module]
    return {role: tensor.detach() for role, tensor in params.items()}, dict(frozen)


def merged_weights(adapted: "Adapted", member: int) -> dict[str, Tensor]:
    """Every adapted module's weight with the update in it, as it is stored; Unmergeable for token-routed structures."""
    method = adapted.members[member].method
    assert method is not None
    out = {}
    for name, layer in adapted.adapted(member).items():
        params, frozen = module_tensors(adapted, member, name)
        dtype = next(iter(params.values())).dtype
        out[name] = turned(layer.base, method.structure.merge(weight_of(layer.base).to(dtype), params, frozen))
    return out


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    # One key: safetensors writes several in an order that changes from process to process.
    replace(path, lambda aside: save_file(plain, aside, metadata={"format": "pt"}))
