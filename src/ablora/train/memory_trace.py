"""What one run's passes keep and make, counted on a model without numbers: bytes as functions of tokens and labels."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ablora.method.adaptation import Adaptation
from ablora.method.dropout import Draw
from ablora.method.full import Full
from ablora.method.lowrank import LowRank
from ablora.method.peft_tuner import Peft
from ablora.method.twin import wants_numbers
from ablora.models.rows import Rows, cross_entropies
from ablora.spec import RunSpec
from ablora.train.memory_live import Live
from ablora.train.memory_model import Shadow, shadow

TOKENS = (128, 256)
"""Lengths at which passes are counted: everything but single constants grows with the tokens in proportion, since
attention keeps no square of them."""
LABELS = (32, 64)


class Line(NamedTuple):
    """constant + per_token * tokens + per_label * labels, in bytes."""

    constant: float = 0.0
    per_token: float = 0.0
    per_label: float = 0.0

    def at(self, tokens: int, labels: int = 0) -> int:
        return round(self.constant + self.per_token * tokens + self.per_label * labels)


class Sizes(NamedTuple):
    """What a run has before its first step."""

    trained: int
    """Bytes of the trained tensors."""
    tensors: int
    """How many they are."""
    fixed: int
    """Bytes of copies, scales, masks and factors that are held still."""


class Passes(NamedTuple):
    """One run's passes alone, over what is there before them."""

    kept: Line
    """After the forward pass: what backward will read, and the last hidden states."""
    backward: Line
    """The most during the backward pass through the layers, gradients of the first layers among it."""
    head: Line
    """The most between the two, over what is kept: logits, their logarithms and gradients."""
    head_gradients: Line
    """Those of what the head trains, which are there while the backward pass goes through the layers."""
    looking: Line
    """The most of a forward pass that keeps nothing."""
    scores: Line
    """The most at the head then."""


def passes(spec: RunSpec) -> Passes:
    """A run's passes; counted once for all runs that differ in nothing that decides bytes, and at two ranks for all
    ranks over the greater, since every tensor but single small ones grows with the rank in proportion or not at all."""
    low, high = _ranks(spec)
    if spec.rank is None or spec.rank <= high:
        return _passes(_Key(spec))
    less, more = (_passes(_Key(replace(spec, rank=rank))) for rank in (low, high))
    share = (spec.rank - low) / (high - low)
    return Passes(*(Line(*(a + share * (b - a) for a, b in zip(x, y))) for x, y in zip(less, more)))


def _ranks(spec: RunSpec) -> tuple[int, int]:
    """Two ranks that the method may have: from 8 on, and twice that."""
    experts = spec.method.structure.experts if isinstance(spec.method, LowRank) else 1
    low = experts * -(-8 // experts)
    return low, 2 * low


class _Key:
    """A specification by what its bytes depend on."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        drops = spec.adapter.dropout > 0
        adapter = replace(spec.adapter, dropout=0.5 if drops else 0.0)
        self._key = repr((spec.method, str(spec.model.folder), spec.model.dtype, adapter, spec.rank))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


def sizes(spec: RunSpec) -> Sizes:
    """A run's own tensors, at its own rank."""
    return _sizes(_Key(spec))


@lru_cache(maxsize=4096)
def _sizes(key: _Key) -> Sizes:
    with shadow(key.spec) as run:
        trained = run.adapted.parameters(0)
        factors = run.adapted.factors(0)
        held = {
            f"{module}.{role}": t
            for module, own in factors.items()
            for role, t in (*own.params.items(), *own.frozen.items())
        }
        fixed = {name: tensor for name, tensor in held.items() if name not in trained}
        return Sizes(_whole(run, trained, lambda t: t.nbytes), _whole(run, trained, lambda _: 1),
                     _whole(run, fixed, lambda t: t.nbytes))  # fmt: skip


def _whole(run: Shadow, tensors: Mapping[str, Tensor], measure: Callable[[Tensor], int]) -> int:
    """A sum over the tensors, those of the last layer as often as it stands for one."""
    return sum(measure(t) * (1 + run.left_out * bool(run.last and run.last in name)) for name, t in tensors.items())


@lru_cache(maxsize=4096)
def _passes(key: _Key) -> Passes:
    try:
        return _counted(key.spec)
    except (NotImplementedError, RuntimeError) as error:
        if not isinstance(key.spec.method, Peft) or not wants_numbers(error):
            raise
        # A prompt's place depends on numbers, which are not there: what training all targets would keep is no less.
        return _counted(replace(key.spec, method=Full(name="", part="targets")))


def _counted(spec: RunSpec) -> Passes:
    with shadow(spec) as run:
        trunks = [_trunk(run, spec, tokens) for tokens in TOKENS]
        kept, backward = (_line(TOKENS, [trunk[i] for trunk in trunks]) for i in (0, 1))
        looking = _line(TOKENS, [_look(run, tokens) for tokens in TOKENS])
        head, scores = (_plane(partial(_head, run, learns)) for learns in (True, False))
        return Passes(kept, backward, head, Line(_head_gradients(run)), looking, scores)


def _line(at: tuple[int, int], found: list[int]) -> Line:
    slope = (found[1] - found[0]) / (at[1] - at[0])
    return Line(found[0] - slope * at[0], slope)


def _plane(count: Callable[[int, int], int]) -> Line:
    (t, more_t), (n, more_n) = TOKENS, LABELS
    first = count(t, n)
    per_token = (count(more_t, n) - first) / (more_t - t)
    per_label = (count(t, more_n) - first) / (more_n - n)
    return Line(first - per_token * t - per_label * n, per_token, per_label)


def row_of(tokens: int, labels: int = 1) -> Rows:
    """One sequence without numbers."""
    with torch.device("meta"):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        ones = torch.ones(1, tokens, dtype=torch.bool)
        return Rows(ids, [[tokens]], ones, ones, ids[0, :labels], ids[0, :labels])


def _trunk(run: Shadow, spec: RunSpec, tokens: int) -> tuple[int, int]:
    """(kept, most in backward) of the whole model."""
    draws = [Draw(0, 1, 0, spec.adapter.dropout)] if spec.adapter.dropout > 0 else None
    live, after = Live(run.known()), []
    hooks = [layer.register_forward_hook(lambda *_: after.append(live.bytes)) for layer in run.layers]
    try:
        with live, torch.enable_grad():
            rows = row_of(tokens)
            hidden = run.adapted.hidden(rows, draws)
            kept = live.bytes
            gradient = torch.empty_like(hidden)
            live.since()
            if hidden.requires_grad:
                hidden.backward(gradient)
            most = live.since()
    finally:
        for hook in hooks:
            hook.remove()
        run.adapted.clear_gradients()
    each = after[-1] - after[-2] if len(after) > 1 else 0
    return kept + run.left_out * each, most + run.left_out * each


@torch.no_grad()
def _look(run: Shadow, tokens: int) -> int:
    live = Live(run.known())
    with live:
        run.adapted.hidden(row_of(tokens))
    return live.peak


def _head(run: Shadow, learns: bool, tokens: int, labels: int) -> int:
    """The most at the head, over the hidden states."""
    width = run.model.config.get_text_config().hidden_size
    hidden = torch.empty(1, tokens, width, device="meta", dtype=run.model.dtype, requires_grad=learns)
    at = torch.zeros(labels, dtype=torch.long, device="meta")
    live = Live([hidden, at, *run.known()])
    with live, torch.set_grad_enabled(learns):
        losses = _losses(run.adapted, hidden, at).double().sum()
        if learns:
            losses.backward()
    run.adapted.clear_gradients()
    return live.peak


def _head_gradients(run: Shadow) -> int:
    width = run.model.config.get_text_config().hidden_size
    hidden = torch.empty(1, 1, width, device="meta", dtype=run.model.dtype)
    with torch.enable_grad():
        logits = run.adapted.logits(hidden)
        if logits.requires_grad:
            logits.sum().backward()
    own = (p.grad for p in run.adapted.parameters(0).values())
    found = sum(grad.nbytes for grad in own if grad is not None)
    run.adapted.clear_gradients()
    return found


def _losses(adapted: Adaptation, hidden: Tensor, at: Tensor) -> Tensor:
    """As `label_losses_of`, the labels' positions given as numbers: a mask has no length without its content."""
    return cross_entropies(adapted.logits(hidden[0, at]), at)
