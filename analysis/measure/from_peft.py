"""Adapters that Hugging Face PEFT saved: plain LoRA and rsLoRA, whose update is s B A on the untouched base."""

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ablora.spec import BadInput, check
from ablora.store.atomic import Corrupted, read_json
from ablora.store.tensor_file import TensorFile, open_checked, require_names, require_shape
from ablora_analysis.measure.adapters import WHOLE, Adapter, Part, require_module
from ablora_analysis.measure.base_weights import BaseWeights
from ablora_analysis.measure.update import Update

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base weight as it is (huggingface/peft 0.21.2 tuners/lora/layer.py)."""
RESIDUAL = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Those that overwrite it with a residual, so that s B A is not what was learnt."""
UNSUPPORTED = (
    "use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters",
    "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config",
    "alora_invocation_tokens", "arrow_config", "megatron_config",
)  # fmt: skip
"""Options under which the update is not s B A of linear layers alone; each must be absent, null or false."""


def open_peft(folder: Path, base: Path | None = None) -> Adapter:
    """A folder that PEFT's `save_pretrained` wrote, checked against its base."""
    path = folder / CONFIG
    config = read_json(path)
    check(isinstance(config, dict), str(path), type(config).__name__, "PEFT's LoraConfig")
    _require_plain(path, config)
    weights = BaseWeights(_base(path, config, base))
    check((folder / TENSORS).exists(), str(folder), "no " + TENSORS, f"a folder with {TENSORS} (no pickled weights)")
    file = open_checked(folder / TENSORS)
    ranks = _require_complete(path, config, file, weights)
    scales = {module: scaling(config, module) for module in ranks}
    return Adapter(
        id=str(folder),
        base=weights,
        ranks=ranks,
        content=f"{file.sha256} {sorted(scales.items())}",
        parts=partial(_parts, file, scales),
        start=lambda module: None,
    )


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    def refuse(key: str, value: Any, legal: str) -> None:
        raise BadInput(f"{path}: {key}", value, legal)

    if config.get("peft_type") != "LORA":
        refuse("peft_type", config.get("peft_type"), "LORA (plain or with use_rslora)")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        refuse("init_lora_weights", start, "an adapter that was converted when it was saved, with PEFT's "
               "save_pretrained(path_initial_model_for_weight_conversion=...): this one starts from a changed base, "
               "so that its factors alone do not say what was learnt")  # fmt: skip
    if start not in STARTS:
        refuse("init_lora_weights", start, f"one of {', '.join(map(str, STARTS))}")
    if config.get("bias", "none") != "none":
        refuse("bias", config["bias"], "none: trained biases are part of the update and are not measured")
    for key in UNSUPPORTED:
        if config.get(key):
            refuse(key, config[key], "null or false: with it the update is not s B A of linear layers alone")


def _base(path: Path, config: Mapping[str, Any], base: Path | None) -> Path:
    named = config.get("base_model_name_or_path")
    if base is None:
        legal = "a local folder; say where the base is with --base FOLDER (or --base pico)"
        check(isinstance(named, str) and Path(named).is_dir(), f"{path}: base_model_name_or_path", named, legal)
    return base or Path(str(named))


def _require_complete(path: Path, config: Mapping[str, Any], file: TensorFile, base: BaseWeights) -> dict[str, int]:
    modules = _modules(file)
    require_names(file, [f"{PREFIX}{module}.lora_{side}.weight" for module in modules for side in "AB"])
    ranks = {module: rank_of(config, module) for module in modules}
    why = f"as r or rank_pattern in {path.name} and the base {base.folder} say"
    for module, rank in ranks.items():
        out_features, in_features = require_module(base, file.path, module)
        require_shape(file, f"{PREFIX}{module}.lora_A.weight", (rank, in_features), why)
        require_shape(file, f"{PREFIX}{module}.lora_B.weight", (out_features, rank), why)
    return ranks


def _modules(file: TensorFile) -> list[str]:
    """The adapted modules; a tensor that is no factor of one is refused by name."""
    found = {}
    for name in file.shapes:
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight", name)
        if match is None:
            raise Corrupted(f"{file.path}: {name}", "not expected", f"{PREFIX}MODULE.lora_A.weight or .lora_B.weight")
        found[match[1]] = None
    check(bool(found), str(file.path), "no tensors", "at least one adapted module")
    return list(found)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    return _by_pattern(config, "rank_pattern", "r", 8, module)


def scaling(config: Mapping[str, Any], module: str) -> float:
    """s = alpha / r, or alpha / sqrt(r) with use_rslora, with the module's own alpha and r where patterns match it."""
    rank, alpha = rank_of(config, module), _by_pattern(config, "alpha_pattern", "lora_alpha", 8, module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: Mapping[str, Any], patterns: str, key: str, default: int, module: str) -> Any:
    """The first pattern that the module's name ends with (a regular expression, from the start or after a dot)."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config.get(key, default)


def _parts(file: TensorFile, scales: Mapping[str, float], module: str) -> dict[str, Part]:
    a, b = (f"{PREFIX}{module}.lora_{side}.weight" for side in "AB")
    tensors = file.read([a, b])
    update = Update(scales[module] * tensors[b].double(), tensors[a].double())
    return {WHOLE: Part(update, len(update.A), "")}
