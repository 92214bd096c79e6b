"""A model with one of PEFT's tuners in it, made beside the base: nothing that a tuner does reaches the base.

Tuners put in layers and hooks, set `requires_grad`, and some change weights by their start. They get a twin: modules
of its own over the base's weights, so that there is nothing to undo.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, PreTrainedModel

from ablora.method.adaptation import ModuleRecord
from ablora.method.peft_tuner import Peft
from ablora.method.seeds import fold
from ablora.method.targets import find_targets
from ablora.models.base import skeleton
from ablora.spec import BadInput, check

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"
"""The name under which PEFT loads an adapter without being told one."""


class Twin(NamedTuple):
    """PEFT's model over a twin of the base."""

    tuned: "PeftModel"
    added: list[nn.Module]
    """The modules that the base has not."""

    @property
    def model(self) -> PreTrainedModel:
        """The base's class, with the tuner's layers in it."""
        return cast(PreTrainedModel, self.tuned.get_base_model())

    def trained(self) -> dict[str, Parameter]:
        return {name: p for name, p in self.tuned.named_parameters() if p.requires_grad}


def make(base: PreTrainedModel, method: Peft, targets: str | tuple[str, ...]) -> Twin:
    """The tuner in a twin, all of it in eval mode. BadInput with PEFT's reason where it refuses.

    While it is made the weights are there twice; then those that are still the base's, and are not trained, share its
    memory.
    """
    from peft import get_peft_model

    config = method.configured(list(find_targets(base, targets)) if method.takes_targets else None)
    own = {p: Parameter(p.detach().clone(), requires_grad=False) for p in base.parameters()}
    twin = copy.deepcopy(base, {id(p): mine for p, mine in own.items()}).eval()
    known = {id(module) for module in twin.modules()}
    try:
        with warnings.catch_warnings():  # BOFT's kernel, for more factors than the one that is allowed
            warnings.filterwarnings("ignore", "Failed to load the CUDA extension|Setting boft_n_butterfly_factor")
            tuned = cast("PeftModel", get_peft_model(twin, config, ADAPTER)).eval()
    except Exception as error:  # whatever PEFT's tuners raise
        said = f"what PEFT's {method.tuner} can put into this model; it says: {type(error).__name__}: {error}"
        raise BadInput("method.config", method.config, said) from error
    for p, mine in own.items():
        if not (mine.requires_grad or mine.is_meta) and torch.equal(mine, p):
            mine.data = p.data
    found = Twin(tuned, [module for module in tuned.modules() if id(module) not in known])
    trains = any(p.numel() for p in found.trained().values())
    check(trains, "method.config", method.config, f"something that {method.tuner} trains in this model")
    return found


def records(twin: Twin) -> dict[str, ModuleRecord]:
    """What was realised, by the module of the base that it stands at; of what stands at none, by its own name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, object] = {n: m for n, m in twin.tuned.named_modules() if isinstance(m, BaseTunerLayer)}
    out: dict[str, ModuleRecord] = {}
    for name, p in twin.trained().items():
        at = next((layer for layer in _ends(name) if layer in layers), None)
        before = out.get(place := _plain(name.rpartition(".")[0] if at is None else at))
        count = p.numel() + (before.parameters if before else 0)
        out[place] = ModuleRecord(None, None if at is None else _rank(layers[at]), count)
    return out


def _ends(name: str) -> Iterator[str]:
    """a, a.b, a.b.c of a.b.c.d: the outermost layer first."""
    parts = name.split(".")
    yield from (".".join(parts[:i]) for i in range(1, len(parts)))


def _plain(name: str) -> str:
    inner = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return ".".join(part for part in inner.split(".") if part != ADAPTER)


def _rank(layer: object) -> int | None:
    rank = getattr(layer, "r", None)
    own = rank.get(ADAPTER) if isinstance(rank, Mapping) else None
    return own if isinstance(own, int) and own > 0 else None


def count(method: Peft, folder: Path, targets: str | tuple[str, ...]) -> int:
    """The numbers that a tuner trains on a model, from shapes alone; a shared tensor counts once."""
    return _counted(folder, targets, method.tuner, json.dumps(method.config, sort_keys=True))


@cache
def _counted(folder: Path, targets: str | tuple[str, ...], tuner: str, config: str) -> int:
    method = Peft(name="", tuner=tuner, config=json.loads(config))
    with seeded(torch.device("cpu"), "count"):
        try:
            found = make(skeleton(folder), method, targets)
        except BadInput as error:
            if not wants_numbers(error.__cause__):
                raise
            found = make(AutoModelForCausalLM.from_config(skeleton(folder).config), method, targets)
    return sum(p.numel() for p in found.trained().values())


def wants_numbers(error: BaseException | None) -> bool:
    """Whether shapes do not do: some tuners read the weights that they start from (seen: FROD, SHIRA), and a prompt's
    place depends on the tokens. Torch says so by a class of its own or by the device's name."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Within it torch's own generators stand at a state that `parts` name; behind it, where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(fold(*parts))
        yield
