"""Ranks that move between steps: the structure says when and where to, this gives it the losses it asks for."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from ablora.evals._kept import Kept
from ablora.method.adaptation import Adaptation
from ablora.method.attach import Adapted
from ablora.method.seeds import generator
from ablora.method.structure._reallocates import Variants, reallocating
from ablora.models.base import Base
from ablora.models.rows import cross_entropies, lay_out
from ablora.train.member import Diverged, RunState

TOKENS = 2**13
"""At most so many in a forward pass, if one variant has no more."""


class Reallocated(NamedTuple):
    """One reallocation of one run, for its records."""

    ranks: dict[str, int]
    """By module, after it."""
    moved: int
    loss_nats: float
    """On the probe, before it."""
    tokens: int
    """All that went through the model for it, in this process."""
    seconds: float


@torch.no_grad()
def reallocate(base: Base, adapted: Adaptation, run: RunState, kept: Kept) -> Reallocated | Diverged:
    """What a run's structure does with its ranks after the step it has made; where `kept` stops it, nothing moves."""
    structure = reallocating(run.spec.method)
    assert structure is not None
    assert isinstance(adapted, Adapted)
    began_s, passed, asked = time.monotonic(), 0, False

    def losses(variants: Variants) -> Float64[Tensor, " variants"]:
        nonlocal passed, asked
        assert not asked, "one question in a reallocation: what is kept of it is told by its place alone"
        asked, mine, together = True, kept.found[run.index], _together(run)
        del mine[len(mine) // together * together :]  # a pass of which a part is kept is made again, cut as it was
        before = len(mine)
        found = losses_of(base, adapted, run, variants, kept)
        passed = (len(found) - before) * _tokens(run)
        if not found.isfinite().all():
            raise Diverged(f"loss {found[~found.isfinite()][0].item()} of a variant on the probe at step {run.step}")
        return found

    def draw(module: str) -> torch.Generator:
        return generator("reallocation", run.spec.seed, run.step, module)

    try:
        moved = structure.reallocate(run.factors, losses, draw)
    except Diverged as diverged:
        return diverged
    run.forget(moved.rewritten)
    run.reallocated = run.step
    ranks = {name: structure.live(factors.frozen) for name, factors in run.factors.items()}
    return Reallocated(ranks, moved.ranks, moved.loss_nats, passed, time.monotonic() - began_s)


def losses_of(
    base: Base, adapted: Adapted, run: RunState, variants: Variants, kept: Kept
) -> Float64[Tensor, " variants"]:
    """Each variant's mean loss on the run's probe; those that are kept are not asked again.

    A row is a variant, as many in a pass as `TOKENS` lets in; no pack-mate is there, so a packed run finds what it
    finds alone.
    """
    items = run.data.probe
    step = _together(run)
    labels = _tokens(run) - sum(item.answer_start for item in items)
    count = len(next(tensor for own in variants.values() for tensor in own.values()))
    found = [[] for _ in kept.found]
    mine = kept.found[run.index]
    for at in range(len(mine), count, step):
        part = _part(variants, slice(at, min(at + step, count)))
        rows = lay_out([items] * (min(at + step, count) - at), base.model.device)
        hidden = adapted.hidden_of_variants(run.index, rows, part)
        losses = cross_entropies(adapted.logits(hidden[rows.predicts]), rows.labels)
        found[run.index] = (losses.double().unflatten(0, (-1, labels)).sum(1).cpu() / labels).tolist()
        kept.add(found)
    return torch.tensor(mine, dtype=torch.float64)


def _tokens(run: RunState) -> int:
    return sum(len(item.input_ids) for item in run.data.probe)


def _together(run: RunState) -> int:
    """Variants in one forward pass."""
    return max(1, TOKENS // _tokens(run))


def _part(variants: Variants, rows: slice) -> Mapping[str, Mapping[str, Tensor]]:
    return {name: {role: tensor[rows] for role, tensor in own.items()} for name, own in variants.items()}
