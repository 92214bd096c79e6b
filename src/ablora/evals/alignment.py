"""How far a gradient step of the factors is a step of full fine-tuning."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ablora.evals._base import Items, Outcome
from ablora.evals._equivalent import Flow, align
from ablora.evals._kept import Kept
from ablora.method.adaptation import Adaptation, label_losses_of
from ablora.method.attach import Adapted
from ablora.method.lowrank import LowRank
from ablora.method.structure.experts import Experts
from ablora.method.structure.pair import Pair
from ablora.models.base import Base
from ablora.models.rows import Rows, lay_out
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The equivalent gradient of each module's factors against the gradient of full fine-tuning, where they stand.

    G = dL/dW at W0 + dW = sum_t delta_t x_t^T (m, n),   L = mean over the items' answer tokens, delta_t = dL/dy_t
    E = s^2 (B B^T G + G A^T A):   a step of plain gradient descent at rate h moves s B A by -h E + O(h^2)
    cosine = <E, G> / (|E| |G|),   norm_ratio = |E| / |G|,   gradient_norm = |G|

    A mixture is compared with the mixture whose experts are full matrices, y = W0 x + sum_e g_e(x) W_e x, routed as
    it is routed: per expert G_e = sum_t g_te delta_t x_t^T with the gate of every token itself (no mean gates), E_e
    from G_e and the expert's own factors, and the three numbers are of all experts' matrices as one vector. The
    router's own step is in neither. `router_gradient: sqrt` has sqrt(g) for g in both, as its factors are trained.
    Where heads share A, E_e has the step of A that all heads ask for.

    A factor that the update holds has no part in E (LoRA-FA: s^2 G A^T A). What an update or optimizer makes of a
    gradient (Riemannian, LoRA+, Adam) and what penalties add is not in E. Structures with other tensors in their
    weight (DoRA, AdaLoRA) have no outcome, nor have methods that step by G itself (`full`, `full_moe`). A module
    without any gradient has cosine and ratio 0.

    Metrics `alignment_cosine` and `alignment_norm_ratio` are means over modules; one record per module. All items go
    through one forward and backward pass, without dropout: its memory is that of a training step on them, and
    beside it only products of (tokens, tokens) are made. No gradient of a parameter is computed.

    Source: arXiv:2502.16894 section 3 (equivalent gradient, and its alignment for every expert of a mixture).
    Differs: measured on a run's items and at every evaluation, where the source argues about the first step.
    """

    revision: ClassVar[int] = 1
    split: Literal["train", "validation", "test"]
    max_items: int
    """The first so many items of the split, in one pass."""

    def __post_init__(self) -> None:
        check(self.max_items >= 1, "max_items", self.max_items, "an integer of at least 1")

    def run(
        self, base: Base, adapted: Adaptation, members: Sequence[Items], kept: Kept | None = None
    ) -> list[Outcome | None]:
        if not isinstance(adapted, Adapted):
            return [None] * len(members)
        methods = [m.method for m in adapted.members]
        asked = [i for i, m in enumerate(methods) if members[i].encoded and _has_equivalent(m)]
        if not asked:
            return [None] * len(members)
        rows = lay_out([m.encoded if i in asked else () for i, m in enumerate(members)], base.model.device)
        inputs, deltas = _backward(base, adapted, rows)
        return [_outcome(adapted, i, rows, inputs, deltas) if i in asked else None for i in range(len(members))]


def _has_equivalent(method: object) -> bool:
    return isinstance(method, LowRank) and isinstance(method.structure, Pair | Experts)


def _backward(base: Base, adapted: Adapted, rows: Rows) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every module's inputs, and the gradient by its outputs of the sum over runs of each run's mean loss."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    adapted.state.per_token = True
    try:
        with torch.enable_grad(), _listening(adapted, inputs, outputs):
            nats = label_losses_of(adapted, rows)
            labels = rows.predicts.sum(1)
            share = (1 / labels.clamp(min=1)).to(nats.dtype).repeat_interleave(labels)
            # by outputs alone: no parameter's .grad is written
            found = torch.autograd.grad((nats * share).sum(), list(outputs.values()))
    finally:
        adapted.state.per_token = False
    return inputs, dict(zip(outputs, found, strict=True))


@contextmanager
def _listening(adapted: Adapted, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Iterator[None]:
    def hear(name: str, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        inputs[name], outputs[name] = args[0].detach(), out

    # of a module that nobody adapts the output may have no gradient
    here = {name: m for name, m in adapted.modules.items() if any(group.stack is not None for group in m.groups)}
    hooks = [layer.register_forward_hook(partial(hear, name)) for name, layer in here.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _outcome(
    adapted: Adapted, member: int, rows: Rows, inputs: dict[str, Tensor], deltas: dict[str, Tensor]
) -> Outcome:
    method = adapted.members[member].method
    assert isinstance(method, LowRank)
    tokens, trained = int(rows.real[member].sum()), frozenset(r for r in ("A", "B") if method.update.trains(r))
    stats, records = adapted.stats(member), []
    for name, factors in adapted.factors(member).items():
        x, delta = inputs[name][member, :tokens], deltas[name][member, :tokens]
        gates = _gates(method.structure, stats[name].get("weights"), x)
        records.append({"item": name, **align(Flow(x, delta, gates), factors, trained)._asdict()})
    metrics = {f"alignment_{key}": sum(r[key] for r in records) / len(records) for key in ("cosine", "norm_ratio")}
    return Outcome(metrics, records)


def _gates(structure: Pair | Experts, weights: Tensor | None, x: Tensor) -> Tensor:
    """(tokens, experts), without padding behind the run's tokens and experts that only its pack-mates have."""
    if isinstance(structure, Pair):
        return x.new_ones(len(x), 1)
    assert weights is not None
    gates = weights[: len(x), : structure.experts].detach()
    return gates.sqrt() if structure.router_gradient == "sqrt" else gates
