"""What the layers of a base see of some data: sums over samples, taken in one pass and kept for all who ask the same.

Memory and file of a pass: for sums of inputs n^2 float64 per distinct input (q, k and v read one, gate and up another:
a layer of a Llama of width d and inner width f takes 8 (3 d^2 + f^2) bytes); for gradients m n float64 per module,
beside one module's dense gradient at a time and the activations of one micro-batch.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablora.spec import check
from ablora.store import cache, tensors
from ablora.store.atomic import Corrupted

REVISION = 1
"""Raised when a pass gives other sums, or the file has another form. Part of the file's name."""

Sums = Mapping[str, Tensor]
"""What one module gave, by name, in float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which training items are looked at, whole, before the first step: the same for all seeds of a study.

    A random order of the run's training items is followed for `samples` items, or as far as `tokens` tokens reach;
    a smaller training split is seen whole, once.
    """

    samples: int
    """At most so many items."""
    tokens: int | None
    """At most so many tokens in all; null: no bound."""
    seed: int
    """Of the order; it is not the run's seed, so that seeds differ in nothing else and share one pass."""

    def __post_init__(self) -> None:
        check(self.samples >= 1, "samples", self.samples, "an integer of at least 1")
        check(self.tokens is None or self.tokens >= 1, "tokens", self.tokens, "null, or an integer of at least 1")
        check(self.seed >= 0, "seed", self.seed, "an integer of at least 0")


@runtime_checkable
class OfInputs(Protocol):
    """What is summed over samples, of a layer's inputs."""

    def addends(self, x: Float[Tensor, "tokens in"], answer: Bool[Tensor, " tokens"]) -> dict[str, Tensor]:
        """One sample's part of each sum; `x` in float64, `answer` true at the tokens of the answer."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """count = sum 1,  total = sum x (n),  square = sum x x^T (n, n), over the answers' tokens or all."""

    positions: Literal["answer", "all"]

    def addends(self, x: Float[Tensor, "tokens in"], answer: Bool[Tensor, " tokens"]) -> dict[str, Tensor]:
        seen = x[answer] if self.positions == "answer" else x
        return {"count": seen.new_tensor(len(seen)), "total": seen.sum(0), "square": seen.mT @ seen}


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalised:
    """count = sum 1,  square = sum X^T X / max(X)^2 (n, n), over samples X (tokens, n); max of the signed entries."""

    def addends(self, x: Float[Tensor, "tokens in"], answer: Bool[Tensor, " tokens"]) -> dict[str, Tensor]:
        x = x / x.max()
        return {"count": x.new_ones(()), "square": x.mT @ x}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradients:
    """count = sum 1,  gradient = sum dL/dW (m, n), over micro-batches; L is the mean over a micro-batch's labels."""

    batch: int
    """Items per micro-batch."""


class Collected(NamedTuple):
    """The sums of all modules; modules that read one and the same input share theirs."""

    sums: dict[str, Sums]
    owner: dict[str, str]
    """By module, under whose name its sums stand."""

    def of(self, module: str) -> Sums:
        return self.sums[self.owner[module]]


class InputSums:
    """Sums over the inputs of layers, while they are listened to."""

    def __init__(self, layers: Mapping[str, nn.Module], statistic: OfInputs):
        self._layers, self._statistic = layers, statistic
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._owner: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None
        self._answer = torch.zeros(0, dtype=torch.bool)

    @contextmanager
    def listening(self) -> Iterator[None]:
        hooks = [layer.register_forward_pre_hook(partial(self._hear, name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def next_sample(self, answer: Bool[Tensor, " tokens"]) -> None:
        """What is heard from here on is one sample, whose answer's tokens these are."""
        self._answer, self._last = answer, None

    def _hear(self, name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._last is not None and self._last[1] is args[0]:
            owner = self._last[0]
        else:
            owner, self._last = name, (name, args[0])
            _add(self._sums.setdefault(name, {}), self._statistic.addends(args[0][0].double(), self._answer))
        if self._owner.setdefault(name, owner) != owner:
            raise ValueError(f"{name} shares its input with another layer in some samples and not in others")

    def collected(self) -> Collected:
        return finished(self._sums, self._owner, self._layers)


def finished(sums: Mapping[str, Sums], owner: Mapping[str, str], layers: Mapping[str, nn.Module]) -> Collected:
    """The sums on the CPU, when every layer has some and all are numbers."""
    for name in layers:
        there = name in owner and all(bool(torch.isfinite(t).all()) for t in sums[owner[name]].values())
        legal = "samples that reach every adapted module and give it finite numbers that are not all zero"
        check(there, "method.init.calibration", name, legal)
    return Collected({name: {k: t.cpu() for k, t in own.items()} for name, own in sums.items()}, dict(owner))


@torch.no_grad()
def _add(sums: dict[str, Tensor], addends: Sums) -> None:
    for name, tensor in addends.items():
        if name in sums:
            sums[name] += tensor
        else:
            sums[name] = tensor.clone()


class GradientSums:
    """Sums of dense gradients of weights as they are stored, one module's in memory at a time."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        self._layers = layers
        self._sums: dict[str, dict[str, Tensor]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the layers' weights get gradients; behind it they are frozen again."""
        weights = {name: layer.get_parameter("weight") for name, layer in self._layers.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        hooks = [w.register_post_accumulate_grad_hook(partial(self._take, name)) for name, w in weights.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for weight in weights.values():
                weight.requires_grad_(False)

    def _take(self, name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        _add(self._sums.setdefault(name, {}), {"count": torch.ones((), dtype=torch.float64),
                                               "gradient": weight.grad.double()})  # fmt: skip
        weight.grad = None

    def collected(self) -> Collected:
        return finished(self._sums, {name: name for name in self._sums}, self._layers)


def kept(folder: Path | None, key: str, collect: Callable[[], Collected]) -> Collected:
    """The sums of a pass, from the file that `key` names or made now; without a folder nothing is written."""
    if folder is None:
        return collect()

    def make() -> Callable[[Path], None]:
        found = collect()
        flat = {f"{name}/{part}": t for name, own in found.sums.items() for part, t in own.items()}
        return lambda aside: tensors.write(aside, flat, json.dumps(found.owner))

    return cache.fetch(folder / "statistics" / f"{key}.safetensors", _read, make)


def _read(path: Path) -> Collected:
    try:
        flat, note = tensors.read(path)
    except tensors.Damaged as error:
        legal = "sums of a calibration pass; delete this file and they are made again"
        raise Corrupted(os.fspath(path), str(error), legal) from error
    sums: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        module, _, part = name.rpartition("/")
        sums.setdefault(module, {})[part] = tensor
    return Collected(dict(sums), json.loads(note))
