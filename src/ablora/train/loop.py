"""The training of a pack, step by step. It knows no method by name, and can be read in one sitting."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ablora.method.adaptation import Adaptation, label_losses_of
from ablora.models.base import Base
from ablora.models.passes import passes_of
from ablora.models.rows import Sequence_
from ablora.train.member import Diverged, RunState


class Trained(NamedTuple):
    """What one optimizer step of one run gives to its record."""

    loss_nats: float
    """Mean over the step's answer tokens."""
    lr: float
    grad_norm: float
    stats: dict[str, float]
    tokens: int
    """All tokens that went through the model for it."""


def train_step(
    base: Base, adapted: Adaptation, runs: Sequence[RunState], pause: Callable[[], None] = lambda: None
) -> dict[int, Trained | Diverged]:
    """One optimizer step of every active run: for each micro-batch a forward and backward pass over all runs, or, on a
    CPU, over as many neighbours at a time as gain by it.

    The loss of a run's step is the sum over its answer tokens divided by their number in the whole step, so any
    micro-batch split gives the same gradient; a structure's penalty is weighted by each micro-batch's share of the
    step's real tokens. Runs are summed: each gets gradient 1, and nothing else couples them. `pause` may raise between
    passes: no parameter has been touched by then. Afterwards there are no gradients: they take as much as what is
    trained.
    """
    steps = [run.micro_batches() for run in runs]
    labels = [sum(len(e.input_ids) - e.answer_start for micro in step for e in micro) for step in steps]
    totals = [sum(len(e.input_ids) for micro in step for e in micro) for step in steps]
    sums = torch.zeros(len(runs), dtype=torch.float64)
    stats: list[dict[str, float]] = [{} for _ in runs]
    adapted.clear_gradients()  # of a step that was left undone
    for micro in range(max(map(len, steps))):
        batches = [step[micro] if micro < len(step) else [] for step in steps]
        tokens = [sum(len(e.input_ids) for e in batch) for batch in batches]
        for own, rows in passes_of(batches, base.model.device):
            pause()
            losses = label_losses_of(adapted, rows, [runs[i].draw(micro) for i in own])
            per_run = _sum_by_run(losses, [batches[i] for i in own])
            sums[own.start : own.stop] += per_run.detach().cpu()
            terms = [summed / labels[i] for i, summed in zip(own, per_run) if labels[i]]
            for i in own:
                if batches[i]:
                    terms.extend(_penalty(adapted, i, tokens[i] / totals[i], stats[i]))
            torch.stack(terms).sum().backward()
    adapted.hand_out_gradients()
    trained = {i: _update(run, sums[i].item() / labels[i], labels[i], stats[i], totals[i])
               for i, run in enumerate(runs) if steps[i]}  # fmt: skip
    adapted.clear_gradients()
    return trained


def _sum_by_run(losses: Tensor, batches: Sequence[Sequence[Sequence_]]) -> Tensor:
    """The summed loss of each run's labels in this micro-batch.

    In float64, where a sum of float32 losses is exact: in float32 it depends on where a run's labels begin in memory,
    and a packed run's loss was seen to differ from its solo loss in the last digit.
    """
    counts = [sum(len(e.input_ids) - e.answer_start for e in batch) for batch in batches]
    return torch.stack([part.double().sum() for part in losses.split(counts)])


def _penalty(adapted: Adaptation, member: int, share: float, stats: dict[str, float]) -> list[Tensor]:
    """The structure's penalty at its share, and its scalar reports, averaged over modules, added to `stats`."""
    for name, value in mean_stats(adapted.stats(member)).items():
        stats[name] = stats.get(name, 0.0) + share * value
    penalty = adapted.penalty(member)
    if penalty is None:
        return []
    assert penalty.requires_grad, "a penalty without a gradient: reentrant checkpointing drops it without a word"
    stats["penalty"] = stats.get("penalty", 0.0) + share * penalty.item()
    return [share * penalty]


def mean_stats(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Scalar reports of a structure, averaged over its modules."""
    values: dict[str, list[Tensor]] = {}
    for stats in modules.values():
        for name, value in stats.items():
            if value.dim() == 0:
                values.setdefault(name, []).append(value.detach())
    return {name: torch.stack(parts).mean().item() for name, parts in values.items()}


def _update(run: RunState, loss: float, labels: int, stats: dict[str, float], tokens: int) -> Trained | Diverged:
    if not torch.isfinite(torch.tensor(loss)):
        return Diverged(f"loss {loss} at step {run.step + 1}")
    try:
        lr, norm, reports = run.update()
    except Diverged as diverged:
        return diverged
    run.answer_tokens += labels
    return Trained(loss, lr, norm, stats | reports, tokens)
