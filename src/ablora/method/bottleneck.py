"""Bottleneck adapters as a tuner of PEFT, which has none of its own (0.21), on PEFT's base classes for tuners.

Of the libraries that have one, `adapters` (1.3.0) wants transformers 4.57. Importing this module needs PEFT, and makes
the name known to it, so that `PeftModel.from_pretrained` loads what was saved.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ablora.method.layer import out_in

NAME = "BOTTLENECK"
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "granite")
BEHIND_SUBLAYERS = {
    **{kind: ["o_proj", "down_proj"] for kind in GATED},
    "gpt2": ["c_proj"],
    "gpt_neox": ["attention.dense", "dense_4h_to_h"],
    "opt": ["out_proj", "fc2"],
}
"""By architecture: the last layer of attention and of the feed-forward part."""
ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}


@dataclass
class BottleneckConfig(PeftConfig):
    """y <- y + scaling * (U sigma(D y + d) + u),   y (out) a target's output, D (width, out), U (out, width)

    D starts as torch starts a linear layer, U, d and u at zero, so that step 0 is the base bit for bit.

    Source: arXiv:1902.00751 (Houlsby et al., section 2.1) for the layer and its two places, which are the default
        targets; arXiv:2110.04366 (He et al., appendix) for U at zero and the scale.
    Differs: Houlsby's D and U start at random with a small deviation; layer norms are not trained.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    bottleneck_size: int = 64
    act_fn: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scaling: float = 1.0
    bottleneck_dropout: float = 0.0
    """Of the inputs of D, in training."""
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = NAME
        if not isinstance(self.bottleneck_size, int) or self.bottleneck_size < 1:
            raise ValueError(f"bottleneck_size={self.bottleneck_size!r} must be an integer of at least 1")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn={self.act_fn!r} must be one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.bottleneck_dropout < 1:
            raise ValueError(f"bottleneck_dropout={self.bottleneck_dropout} must be a probability in [0, 1)")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with a bottleneck behind it."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.chosen: dict[str, BottleneckConfig] = {}
        self._disable_adapters, self.merged_adapters = False, []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        width, (out_features, _) = config.bottleneck_size, out_in(self.get_base_layer())  # type: ignore[arg-type]
        self.chosen[adapter_name] = config
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.bottleneck_dropout)
        self.bottleneck_down[adapter_name] = down = nn.Linear(out_features, width)
        self.bottleneck_up[adapter_name] = up = nn.Linear(width, out_features)
        for start in (down.bias, up.weight, up.bias):
            nn.init.zeros_(start)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Float[Tensor, "*rows in"], *args: Any, **kwargs: Any) -> Float[Tensor, "*rows out"]:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                own, down, up = self.chosen[name], self.bottleneck_down[name], self.bottleneck_up[name]
                inner = self.bottleneck_dropout[name](y.to(down.weight.dtype))
                y = y + (own.scaling * up(ACTIVATIONS[own.act_fn](down(inner)))).to(y.dtype)
        return y


class BottleneckModel(BaseTuner):
    """Puts bottlenecks into a model."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping = BEHIND_SUBLAYERS

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        *_: Any,
        **__: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear | Conv1D):
            raise TypeError(f"a bottleneck goes behind linear layers; {target_name} is a {type(target).__name__}")
        self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config), target)


def register() -> None:
    """As `peft.utils.register_peft_method` does, which takes only names of PEFT's own list."""
    known: Any = PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    for mapping, value in zip(known, (BottleneckConfig, BottleneckModel, BottleneckModel.prefix)):
        mapping[NAME] = value


register()
