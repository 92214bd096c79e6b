"""One stacked leaf for a group of runs, one contiguous view per run at its true shape.

Tensors are stored with their padded dimension first (rank, experts), so that a run's part of the stack is contiguous:
fused CPU optimizers on a non-contiguous view were seen to write into other runs' memory without a word.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors


def pad_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one number of dimensions, padded with zeros behind to the largest in every dimension."""
    if len(tensors) == 1:
        return tensors[0][None].clone()
    shape = [max(t.shape[d] for t in tensors) for d in range(tensors[0].dim())]
    out = tensors[0].new_zeros(len(tensors), *shape)
    for i, t in enumerate(tensors):
        out[i][tuple(slice(0, n) for n in t.shape)] = t
    return out


class Stack:
    """The trainable and the fixed tensors of the runs of one group in one module."""

    def __init__(
        self,
        params: Sequence[Mapping[str, Tensor]],
        frozen: Sequence[Mapping[str, Tensor]],
        held: frozenset[str] = frozenset(),
    ):
        self.held = held
        """Names in `frozen` that structures read as parameters: factors that the update does not train."""
        self.leaves = {key: pad_stack([p[key] for p in params]).requires_grad_() for key in params[0]}
        self.frozen = {key: pad_stack([f[key] for f in frozen]) for key in frozen[0]}
        self._shapes = [{key: tensor.shape for key, tensor in p.items()} for p in params]
        self._frozen_shapes = [{key: tensor.shape for key, tensor in f.items()} for f in frozen]
        self.views = [self._bind(i) for i in range(len(params))]

    @property
    def params(self) -> dict[str, Tensor]:
        """What structures read as parameters, stacked over the runs."""
        return {**self.leaves, **{key: self.frozen[key] for key in self.held}}

    @property
    def given(self) -> dict[str, Tensor]:
        """What structures read as frozen, stacked over the runs."""
        return {key: tensor for key, tensor in self.frozen.items() if key not in self.held}

    def _bind(self, run: int) -> dict[str, Parameter]:
        return {key: Parameter(self._cut(leaf.data, run, key)) for key, leaf in self.leaves.items()}

    def _cut(self, stacked: Tensor, run: int, key: str) -> Tensor:
        view = stacked[run][tuple(slice(0, n) for n in self._shapes[run][key])]
        assert view.is_contiguous(), (key, stacked.shape, self._shapes[run][key])
        return view

    def keep(self, runs: Sequence[int]) -> None:
        """Let the other runs go; those that stay keep their parameter objects, and so their optimizers' state."""
        views, constants = [self.views[i] for i in runs], [self.constants(i) for i in runs]
        self._shapes = [self._shapes[i] for i in runs]
        self._frozen_shapes = [self._frozen_shapes[i] for i in runs]
        with torch.no_grad():
            self.leaves = {key: pad_stack([own[key].data for own in views]).requires_grad_() for key in self.leaves}
            self.frozen = {key: pad_stack([own[key] for own in constants]) for key in self.frozen}
        self.views = views
        for run, own in enumerate(views):
            for key, parameter in own.items():
                parameter.data, parameter.grad = self._cut(self.leaves[key].data, run, key), None

    def hand_out_gradients(self) -> None:
        """Give every run's parameters their part of the stacked gradient (a view; nothing is copied)."""
        for run, views in enumerate(self.views):
            for key, parameter in views.items():
                grad = self.leaves[key].grad
                parameter.grad = None if grad is None else self._cut(grad, run, key)

    def clear_gradients(self) -> None:
        """The runs' views too, which would keep the stacked gradient beside the next one."""
        for leaf in self.leaves.values():
            leaf.grad = None
        for views in self.views:
            for parameter in views.values():
                parameter.grad = None

    def constants(self, run: int) -> dict[str, Tensor]:
        """A run's fixed tensors at their true shape."""
        shapes = self._frozen_shapes[run]
        return {k: t[run][tuple(slice(0, n) for n in shapes[k])] for k, t in self.frozen.items()}

    def factors(self, run: int) -> Factors:
        """A run's tensors at their true shape, as its structure knows them; trained ones are the run's parameters."""
        frozen = self.constants(run)
        params = {**self.views[run], **{role: frozen.pop(role) for role in self.held}}
        return Factors(params, frozen)

    def write(self, run: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a run's tensors (trainable or fixed) by name, refusing another shape."""
        for key, value in tensors.items():
            target = self.views[run][key].data if key in self.leaves else self.constants(run)[key]
            if target.shape != value.shape:
                raise ValueError(f"{key}: shape {tuple(value.shape)} where {tuple(target.shape)} is meant")
            with torch.no_grad():
                target.copy_(value)
