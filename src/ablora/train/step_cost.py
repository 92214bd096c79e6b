"""What a training step costs, in multiply-adds: counted on a model without numbers, not timed.

A measured time would make a run's rank, and so its identity, depend on what else the machine did.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ablora.method.lowrank import LowRank
from ablora.spec import RunSpec
from ablora.train.memory_model import Shadow, shadow
from ablora.train.memory_trace import row_of

TOKENS = 1024
"""In the row over which a step is counted: what costs the same whatever the tokens (DoRA's norms) is shared by them."""


def step_cost(spec: RunSpec) -> int:
    """Multiply-adds of matrix products per token, of a forward and backward pass through base and adapters.

    Two ranks are counted, and others lie on the line through them, as every product grows with the rank in proportion
    or not at all, but for r x r Gram matrices (DoRA). Attention itself and the head, the same for every method, are
    not in it.
    """
    structure = spec.method.structure if isinstance(spec.method, LowRank) else None
    if structure is None or spec.rank is None:
        return _cost(_Key(spec))
    low = structure.experts * -(-8 // structure.experts)
    if spec.rank <= low:
        return _cost(_Key(spec))
    less, more = (_cost(_Key(replace(spec, rank=rank))) for rank in (low, 2 * low))
    return round(less + (spec.rank - low) / low * (more - less))


class _Key:
    """A specification by what its cost depends on."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self._key = repr((spec.method, str(spec.model.folder), spec.model.dtype, spec.adapter, spec.rank))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


@lru_cache(maxsize=4096)
def _cost(key: _Key) -> int:
    with shadow(key.spec) as run:
        return round(_count(run) / 2 / TOKENS)


def _count(run: Shadow) -> int:
    """Floating-point operations of a row, those of the last layer as often as it stands for one."""
    counter = FlopCounterMode(display=False)
    after: list[int] = []
    behind: list[int] = []

    def passed(module: nn.Module, args: object, out: object) -> None:
        after.append(counter.get_total_flops())
        hidden = out if isinstance(out, Tensor) else out[0]  # type: ignore[index]
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: behind.append(counter.get_total_flops()))

    hooks = [layer.register_forward_hook(passed) for layer in run.layers]
    try:
        with counter, torch.enable_grad():
            hidden = run.adapted.hidden(row_of(TOKENS))
            if hidden.requires_grad:
                hidden.backward(torch.empty_like(hidden))
    finally:
        for hook in hooks:
            hook.remove()
        run.adapted.clear_gradients()
    each = after[-1] - after[-2] if len(after) > 1 else 0
    each += behind[1] - behind[0] if len(behind) > 1 else 0
    return counter.get_total_flops() + run.left_out * each
