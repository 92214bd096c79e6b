"""PEFT's adapter_config.json: what of it says what the adapter computes, and what is refused by name.

Every key is either read here, or known to change no output (NEUTRAL), or refused where it is set: an option that a
newer PEFT adds is not passed over in silence.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ablora.spec import BadInput, check
from ablora.store.atomic import read_json

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Kind = Literal["lora", "dora", "adalora"]
Residual = Literal["pissa", "olora"]
"""Starts that overwrite the base with what is left of it, and that the base alone gives again."""

UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it is (huggingface/peft 0.21.2 tuners/lora/layer.py)."""
CONVERT = (
    "an adapter that was converted when it was saved: save_pretrained(DIR, "
    "path_initial_model_for_weight_conversion=FOLDER), FOLDER the adapter as it was before training; "
)
REFUSED = {
    "pissa_niter": CONVERT + "this start changed the base by a randomised decomposition, which nothing gives again",
    "corda": CONVERT + "this start changed the base by what its calibration data gave, which is not in the adapter",
    "lora_ga": CONVERT + "this start changed the base by what a gradient gave, which is not in the adapter",
    "loftq": "an adapter of the base as it is: this one stands on a quantised base, and PEFT cannot convert it",
}
READ = {
    "peft_type", "r", "init_r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
    "orth_reg_weight", "total_step",
}  # fmt: skip
"""A recipe for training, a record of the start, where the base was. fan_in_fan_out: the base's layers say so."""
WHY = {
    "modules_to_save": "whole modules were trained beside the factors",
    "trainable_token_indices": "rows of the embedding were trained beside the factors",
    "target_parameters": "factors of bare parameters (such as fused experts)",
    "layer_replication": "the base has other layers than its own",
    "lora_bias": "factors with a bias",
    "alora_invocation_tokens": "an adapter that acts behind a token",
    "arrow_config": "a mixture that routes by prototypes",
    "kasa_config": "the base was cut to a lower rank",
}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A checked configuration of LoRA, rsLoRA, DoRA or AdaLoRA."""

    path: Path
    tree: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        if self.tree["peft_type"] == "ADALORA":
            return "adalora"
        return "dora" if self.tree.get("use_dora") else "lora"

    @property
    def residual(self) -> Residual | None:
        """The start that the base has to be rid of; None: the base is as it was."""
        start = self.tree.get("init_lora_weights", True)
        if self.kind == "adalora" or not isinstance(start, str):
            return None
        return "pissa" if start == "pissa" else "olora" if start.lower() == "olora" else None

    @property
    def base_rank(self) -> int:
        """The rank of modules that no pattern names; of AdaLoRA the one that it began with."""
        return self.tree.get("init_r", 12) if self.kind == "adalora" else self.tree.get("r", 8)

    def rank(self, module: str) -> int:
        if self.kind != "adalora":
            return self._by_pattern("rank_pattern", self.base_rank, module)
        kept = (self.tree.get("rank_pattern") or {}).get(f"{module}.lora_E")
        return self.base_rank if kept is None else sum(map(bool, kept))

    def scale(self, module: str) -> float:
        """s = alpha / r, or alpha / sqrt(r) with use_rslora, with the module's own alpha and r where patterns match it;
        AdaLoRA's alpha / (r + 1e-5), r the rank that it began with."""
        if self.kind == "adalora":
            return self.tree.get("lora_alpha", 8) / (self.base_rank + 1e-5)
        rank, alpha = self.rank(module), self._by_pattern("alpha_pattern", self.tree.get("lora_alpha", 8), module)
        return alpha / (math.sqrt(rank) if self.tree.get("use_rslora") else rank)

    def _by_pattern(self, patterns: str, default: Any, module: str) -> Any:
        """Of the first pattern that the module's name ends with (a regular expression, whole or after a dot)."""
        for pattern, value in (self.tree.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def targets(self, modules: Iterable[str]) -> list[str]:
        """Those of the base's linear layers that the configuration adapts."""
        return [module for module in modules if self._is_target(module)]

    def _is_target(self, module: str) -> bool:
        if _named(self.tree.get("exclude_modules") or (), module):
            return False
        targets = self.tree.get("target_modules") or ()
        if isinstance(targets, str):
            return targets == "all-linear" or re.fullmatch(targets, module) is not None
        return module in targets or (_named(targets, module) and self._is_in_layers(module))

    def _is_in_layers(self, module: str) -> bool:
        layers = self.tree.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.tree.get("layers_pattern") or ()
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        shapes = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for shape in shapes if (match := re.match(shape, module))), None)
        return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _named(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_config(folder: Path) -> PeftConfig:
    """The configuration in a folder; BadInput names the option under which the adapter is not what is read here."""
    path = folder / CONFIG
    tree = read_json(path)
    check(isinstance(tree, dict), str(path), type(tree).__name__, "PEFT's LoraConfig or AdaLoraConfig")
    kind = tree.get("peft_type")
    _check(path, kind in ("LORA", "ADALORA"), "peft_type", kind, "LORA (also with use_rslora, use_dora) or ADALORA")
    config = PeftConfig(path, tree)
    if config.kind != "adalora":  # there it is true, or nothing
        _check_start(path, tree.get("init_lora_weights", True))
    legal = "none: with it biases of the base are trained too, which the factors do not hold"
    _check(path, tree.get("bias", "none") == "none", "bias", tree.get("bias"), legal)
    for key in sorted(tree.keys() - READ - NEUTRAL):
        legal = f"absent, null or false ({WHY.get(key, 'it may change what the factors compute')}): only low-rank "
        _check(path, not tree[key], key, tree[key], legal + "factors of linear layers are read")
    _check_numbers(config)
    return config


def _check_start(path: Path, start: Any) -> None:
    if isinstance(start, str):
        for name, legal in REFUSED.items():
            _check(path, not start.lower().startswith(name), "init_lora_weights", start, legal)
        if start == "pissa" or start.lower() == "olora":
            return
    legal = f"one of {', '.join(map(str, UNTOUCHED))}, pissa, olora"
    _check(path, start in UNTOUCHED, "init_lora_weights", start, legal)


def _check_numbers(config: PeftConfig) -> None:
    tree, path = config.tree, config.path
    rank, alpha = config.base_rank, tree.get("lora_alpha", 8)
    _check(path, isinstance(rank, int) and rank >= 1, "r", rank, "an integer of at least 1")
    number = isinstance(alpha, int | float) and alpha > 0 and math.isfinite(alpha)
    _check(path, number, "lora_alpha", alpha, "a positive number")
    for key in ("rank_pattern", "alpha_pattern"):
        value = tree.get(key) or {}
        _check(path, isinstance(value, Mapping), key, value, "a mapping from names of modules")


def _check(path: Path, condition: bool, key: str, value: Any, legal: str) -> None:
    if not condition:
        raise BadInput(f"{path}: {key}", value, legal)
