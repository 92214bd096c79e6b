"""A base whose own weights are trained: copies stand in their places, and the base's come back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from ablora.method.adaptation import ModuleRecord
from ablora.method.dropout import Draw
from ablora.method.export import save_exact
from ablora.method.full import Full
from ablora.method.structure._base import Factors, Stats
from ablora.method.targets import find_targets
from ablora.models.rows import Rows, head_of, last_states
from ablora.spec import AdapterSpec, check


class Place(NamedTuple):
    """Where a module holds a parameter."""

    module: nn.Module
    attribute: str


def places_of(model: nn.Module, method: Full, targets: str | tuple[str, ...]) -> dict[str, list[Place]]:
    """The trained parameters by the first of their names; a tied one has several places and is one parameter."""
    if method.part == "targets":
        return {f"{name}.weight": [Place(layer, "weight")] for name, layer in find_targets(model, targets).items()}
    found: dict[int, tuple[str, list[Place]]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            found.setdefault(id(parameter), (name, []))[1].append(Place(module, attribute))
    return dict(found.values())


class WholeModel:
    """One run of full fine-tuning, as an `Adaptation`.

    The trained copies stand in the model from the beginning to `detach`; the base's own parameters are kept aside,
    never written, and stand in their places whenever the base is asked.
    """

    def __init__(self, model: PreTrainedModel, method: Full, adapter: AdapterSpec):
        model.requires_grad_(False).eval()
        self.model = model
        self._places = places_of(model, method, adapter.targets)
        self._own = {name: cast(Parameter, getattr(*places[0])) for name, places in self._places.items()}
        dtype = torch.float64 if adapter.compute_dtype == "float64" else torch.float32
        rest = {p.dtype for p in model.parameters()} - {dtype}
        legal = f"all, where the base is {', '.join(map(str, rest))} and what is trained {dtype}"
        check(method.part == "all" or not rest, "method.part", method.part, legal)
        self.trained = {name: Parameter(own.detach().to(dtype, copy=True)) for name, own in self._own.items()}
        self.records = [_records(self.trained)]
        self._put(self.trained)

    def parameters(self, member: int) -> dict[str, Parameter]:
        return self.trained

    def roles(self, member: int) -> dict[str, list[Parameter]]:
        return {"weight": list(self.trained.values())}

    def factors(self, member: int) -> Mapping[str, Factors]:
        return {}

    def hidden(
        self, rows: Rows, draws: Sequence[Draw] | None = None, beside_base: bool = False
    ) -> Float[Tensor, "runs tokens width"]:
        """The run's row, and the base's from a pass of its own; nothing is dropped."""
        own = last_states(self.model, rows.part(slice(0, 1)))
        if not beside_base:
            return own
        with self._base():
            return torch.cat([own, last_states(self.model, rows.part(slice(1, 2))).to(own.dtype)])

    def logits(self, hidden: Float[Tensor, "*rows width"], beside_base: bool = False) -> Float[Tensor, "*rows vocab"]:
        if not beside_base:
            return head_of(self.model)(hidden)
        own = head_of(self.model)(hidden[:-1])
        with self._base():
            head = head_of(self.model)
            return torch.cat([own, head(hidden[-1:].to(next(head.parameters()).dtype)).to(own.dtype)])

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Any, self.model).generate(**inputs)

    def stats(self, member: int) -> Mapping[str, Stats]:
        return {}

    def penalty(self, member: int) -> Tensor | None:
        return None

    def clear_gradients(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def hand_out_gradients(self) -> None:
        """Each parameter has its own; one that the loss does not reach keeps none."""

    def save(self, member: int, folder: Path) -> None:
        save_exact(folder, self.trained, self.records[member], peft=False)

    def keep(self, members: Sequence[int]) -> None:
        raise AssertionError("a pack of one run has nobody to let go")

    def detach(self) -> None:
        self._put(self._own)

    @contextmanager
    def _base(self) -> Iterator[None]:
        self._put(self._own)
        try:
            yield
        finally:
            self._put(self.trained)

    def _put(self, parameters: Mapping[str, Parameter]) -> None:
        for name, places in self._places.items():
            for module, attribute in places:
                setattr(module, attribute, parameters[name])


def _records(trained: Mapping[str, Parameter]) -> dict[str, ModuleRecord]:
    sizes: dict[str, int] = {}
    for name, parameter in trained.items():
        module = name.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + parameter.numel()
    return {module: ModuleRecord(None, None, size) for module, size in sizes.items()}
