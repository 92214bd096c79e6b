"""A run's model without numbers: layers of the base on the meta device, with the run's trainable parts."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from ablora.method.adaptation import Adaptation
from ablora.method.attach import attach
from ablora.method.full import Full
from ablora.method.init._base import Brought, Site, Start, Triplets
from ablora.method.init.activation import Activation
from ablora.method.init.saved import Saved
from ablora.method.init.zero_b import ZeroB
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.method.peft_tuner import Peft
from ablora.method.targets import find_targets
from ablora.method.tuned import tune
from ablora.method.twin import wants_numbers
from ablora.method.whole_model import WholeModel
from ablora.models.base import skeleton
from ablora.spec import AdapterSpec, BadInput, RunSpec
from ablora.spectra.library import Library

NAME = "ablora_counted"
LAYERS = 2
"""Of a model whose layers are alike: the first keeps less for backward (nothing below it learns), the second as much
as every further one."""


class Shadow(NamedTuple):
    """What is counted in place of a run."""

    model: PreTrainedModel
    layers: tuple[nn.Module, ...]
    """Those that are there, in order; none where the model does not show them."""
    left_out: int
    """Layers of the base that are not there, each like the last one that is."""
    last: str
    """What stands in the names of what the last layer has, such as `layers.1.`; empty where nothing is left out."""
    adapted: Adaptation

    def known(self) -> Iterator[Tensor]:
        """What is there before a step begins: weights, factors and their copies."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from self.adapted.parameters(0).values()
        for params, frozen in self.adapted.factors(0).values():
            yield from params.values()
            yield from frozen.values()
        if isinstance(twin := getattr(getattr(self.adapted, "twin", None), "model", None), nn.Module):
            yield from twin.parameters()
            yield from twin.buffers()


@contextmanager
def shadow(spec: RunSpec) -> Iterator[Shadow]:
    """The run's model, cut to two layers where all its layers and their targets are alike."""
    cut = _cut(spec.model.folder, spec.model.dtype, spec.adapter.targets)
    model = cut[0]
    method, adapter = spec.method, spec.adapter
    match method:
        case Full():
            adapted: Adaptation = WholeModel(model, method, adapter)
        case Peft():
            adapted = _tuned(model, method, adapter, spec.seed)
        case LowRank():
            adapted = attach(model, [Member(_plain(method), spec.rank or 0, adapter, 0)], Library(None))
        case _:
            adapted = attach(model, [Member(method, 0, adapter, 0)], Library(None))
    try:
        yield Shadow(*cut, adapted)
    finally:
        adapted.detach()


def _tuned(model: PreTrainedModel, method: Peft, adapter: AdapterSpec, seed: int) -> Adaptation:
    """The tuner's own modules; for one that reads the weights that it starts from, training all targets, which takes no
    less."""
    try:
        return tune(model, method, adapter, seed)
    except BadInput as error:
        if not wants_numbers(error.__cause__):
            raise
        return WholeModel(model, Full(name="", part="targets"), adapter)


@lru_cache(maxsize=8)
def _cut(
    folder: Path, dtype: str, targets: str | tuple[str, ...]
) -> tuple[PreTrainedModel, tuple[nn.Module, ...], int, str]:
    model = copy.deepcopy(skeleton(folder)).to(getattr(torch, dtype))
    model.requires_grad_(False).eval()
    _count_attention(model)
    path, layers = _layers_of(model)
    adapted = set(find_targets(model, targets))
    if len({_description(f"{path}.{i}.", layer, adapted) for i, layer in enumerate(layers)}) > 1:
        return model, tuple(layers), 0, ""
    kept = layers[:LAYERS]
    if layers:
        model.set_submodule(path, nn.ModuleList(kept))
    last = f"{path.rpartition('.')[2]}.{len(kept) - 1}." if kept else ""
    return model, tuple(kept), len(layers) - len(kept), last


def _layers_of(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The model's list of layers and its name; empty where it has none of the length that its configuration says."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for path, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return f"{model.base_model_prefix}.{path}", list(module)
    return "", []


def _description(prefix: str, layer: nn.Module, adapted: set[str]) -> tuple[Any, ...]:
    """What a layer's memory depends on."""
    shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
    return shapes, tuple(sorted(name.removeprefix(prefix) for name in adapted if name.startswith(prefix)))


def _count_attention(model: PreTrainedModel) -> None:
    AttentionInterface.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The tensors of `segmented_attention` on the CPU: torch's flash kernel, whose output and logarithms are kept, and
    the copies that put sequences and rows together. Sequences are taken as one: what they take is their sum."""
    out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]
    return torch.cat([torch.cat([out.transpose(1, 2).contiguous()], dim=1)]), None


def _plain(method: LowRank) -> LowRank:
    """The method with a start of its shapes and a scale of 1: neither decompositions nor data are needed for bytes."""
    out = copy.copy(method)
    brought = isinstance(method.init, Brought)
    object.__setattr__(
        out, "init", _Brought(displaced(method.init), method.init) if brought else _Shapes(displaced(method.init))
    )
    object.__setattr__(out, "scaling", _one)
    return out


def _one(*_: Any) -> float:
    return 1.0


def displaced(init: Any) -> bool:
    """Whether a start is subtracted, so that copies of it are kept. One that this does not know is taken for such."""
    if isinstance(init, Saved):
        return init.adapter.kind == "adalora" or init.adapter.config.residual in ("pissa", "olora")
    return not isinstance(init, ZeroB | Activation)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """A start without numbers."""

    displaced: bool

    def indices(self, site: Site) -> Int[Tensor, " kept"] | None:
        return None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        A, B = (torch.empty(site.rank, n, device="meta") for n in reversed(site.weight.shape))
        return Start(A, B if self.displaced else None)


@dataclass(frozen=True, slots=True)
class _Brought(_Shapes):
    """The same with the ranks that were trained before."""

    displaced: bool = False
    of: Any = None

    def require(self, structure: Any, rank: int | None, base: Mapping[str, tuple[int, int]]) -> None:
        """It was asked for with the run."""

    def rank(self, module: str) -> int:
        return self.of.rank(module)

    def scale(self, module: str) -> float:
        return 1.0


def base_bytes(folder: Path, dtype: str) -> int:
    """The base's weights as they are loaded; a tied one counts once."""
    own = {id(p): p.numel() for p in skeleton(folder).parameters()}
    return sum(own.values()) * cast(torch.dtype, getattr(torch, dtype)).itemsize
