"""A linear layer with the adapters of all runs of a pack."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablora.method.dropout import Draw, pack_mask
from ablora.method.layer import Layer, weight_of
from ablora.method.stack import Stack
from ablora.method.structure._base import Context, Stats, Structure

IN_DIMS = (0, 0, 0, 0, Context(0, 0, None, None, None, None))  # pyright: ignore[reportArgumentType] -- which parts vmap cuts by run


class Copies(NamedTuple):
    """Rows of a batch that are all one member, with other fixed tensors in each, in place of the pack's rows."""

    member: int
    constants: Mapping[str, Mapping[str, Tensor]]
    """By module and role, stacked over the rows; what is absent is the member's own."""


@dataclass(slots=True)
class PackState:
    """What all adapted modules of a model share during a forward pass."""

    runs: int
    """Rows of the batch: the members', and behind them those that keep the base's output."""
    compute_dtype: torch.dtype
    first: int = 0
    """The member that the first row is of."""
    enabled: bool = True
    real: Bool[Tensor, "runs tokens"] | None = None
    """False for padding; None: every position is a real token."""
    draws: Sequence[Draw] | None = None
    """Dropout of this forward pass, per run; None: none."""
    per_token: bool = False
    """Whether structures report on single tokens. Always collected, 20 steps of a small mixture took 7 % longer (3 %
    with this switch off; both near the noise of a busy machine)."""
    copies: Copies | None = None
    """What the rows are if they are not the pack's; nothing is dropped and nothing reported then."""
    stats: dict[str, list["Report"]] = field(default_factory=dict)
    """By module: what the structure of each group reported. Read it before backward."""


class Report(NamedTuple):
    """What a structure reported of some members."""

    rows: slice
    """The members; what was reported is stacked over them."""
    stats: Stats


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring runs of a pack that one vmap serves."""

    structure: Structure | None
    """None: runs without an adapter, whose output is the base's."""
    rows: slice
    stack: Stack | None

    def part(self, start: int, stop: int) -> "Present | None":
        """What a pass over some of the pack's members needs; None where none of them is here."""
        rows = slice(max(start, self.rows.start), min(stop, self.rows.stop))
        if rows.start >= rows.stop:
            return None
        if self.stack is None:
            return Present(self.structure, rows, {}, {})
        params, given = self.stack.params, self.stack.given
        if rows != self.rows:
            own = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
            params, given = ({role: tensor[own] for role, tensor in part.items()} for part in (params, given))
        return Present(self.structure, rows, params, given)


class Present(NamedTuple):
    """The members of a group that a pass goes over, and their tensors, stacked."""

    structure: Structure | None
    rows: slice
    params: Mapping[str, Tensor]
    given: Mapping[str, Tensor]


class PackedLinear(nn.Module):
    """The base layer's output and, for each run of the pack, what its adapter adds.

    The input's rows are run-major: (runs * k, tokens, in) holds k rows of each run. In training k = 1 and a row is
    one run's sequences back to back; in generation a row is a prompt. A pooler's input has no tokens: (runs * k, in).
    """

    def __init__(self, base: Layer, name: str, groups: Sequence[Group], state: PackState):
        super().__init__()
        self.base, self.name, self.groups, self.state = base, name, tuple(groups), state

    @property
    def weight(self) -> Tensor:
        """The untouched base weight as it is stored: some models look at a projection's dtype or device."""
        return self.base.weight

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if not self.state.enabled:
            return self.base(x)
        y = self.base(x)  # with its bias: W x + b in two roundings would not be the base bit for bit (bfloat16)
        return self._adapt(x, y).to(y.dtype)

    def _adapt(self, x: Tensor, y: Tensor) -> Tensor:
        state = self.state
        x_runs = x.reshape(state.runs, -1, x.shape[-1])  # (runs, tokens, in)
        y_runs = y.reshape(state.runs, -1, y.shape[-1])
        real = state.real
        if real is None or real.shape != x_runs.shape[:2]:
            real = torch.ones(x_runs.shape[:2], dtype=torch.bool, device=x.device)
        if state.copies is not None:
            return self._adapt_copies(x_runs, y_runs, real, state.copies).reshape(*y.shape)
        cast = x_runs.to(state.compute_dtype)
        dropped = self._drop(cast)
        drops = dropped is not cast
        parts, state.stats[self.name] = [], []
        present = [here for group in self.groups if (here := group.part(state.first, state.first + state.runs))]
        sizes = [here.rows.stop - here.rows.start for here in present]
        behind = state.runs - sum(sizes)
        by_group = zip(*(_split(t, [*sizes, behind] if behind else sizes) for t in (x_runs, y_runs, dropped, real)))
        for group, (x_own, y_own, dropped_own, real_own) in zip(present, by_group):
            if group.structure is None:
                parts.append(y_own)
                continue
            context = Context(dropped_own, real_own, state.per_token, weight_of(self.base), self.base.bias, drops)
            alone = len(x_own) == 1
            act = partial(_apply_alone if alone else _apply_packed, group.structure.apply)
            part, stats = act(group.params, group.given, x_own, y_own, context)
            parts.append(part)
            state.stats[self.name].append(Report(group.rows, stats))
        if behind:
            parts.append(y_runs[-behind:])
        out = parts[0] if len(parts) == 1 else torch.cat([part.to(y.dtype) for part in parts])
        return out.reshape(*y.shape)

    def _adapt_copies(self, x: Tensor, y: Tensor, real: Tensor, copies: Copies) -> Tensor:
        group = next(group for group in self.groups if group.rows.start <= copies.member < group.rows.stop)
        if group.structure is None or group.stack is None:
            return y
        params, frozen = group.stack.factors(copies.member - group.rows.start)
        own = copies.constants.get(self.name, {})
        dims = (None, {role: 0 if role in own else None for role in frozen}, *IN_DIMS[2:])
        context = Context(x.to(self.state.compute_dtype), real, False, weight_of(self.base), self.base.bias)
        return torch.vmap(group.structure.apply, in_dims=dims)(params, {**frozen, **own}, x, y, context)[0]

    def _drop(self, x: Float[Tensor, "runs tokens in"]) -> Tensor:
        draws = self.state.draws
        mask = None if draws is None else pack_mask(draws, self.name, (x.shape[1], x.shape[2]))
        return x if mask is None else x * mask.to(x)

    def keep(self, members: Sequence[int]) -> None:
        """Only these rows of the pack, in their order."""
        self.groups = tuple(_kept(self.groups, members))


def _kept(groups: Sequence[Group], members: Sequence[int]) -> Iterator[Group]:
    first = 0
    for group in groups:
        own = [member - group.rows.start for member in members if group.rows.start <= member < group.rows.stop]
        if not own:
            continue
        if group.stack is not None and len(own) < group.rows.stop - group.rows.start:
            group.stack.keep(own)
        yield Group(group.structure, slice(first, first + len(own)), group.stack)
        first += len(own)


def _split(tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """By group. Not a slice for each: in backward a slice fills a tensor of all rows with zeros, for every group."""
    return (tensor,) if len(sizes) == 1 else tensor.split(list(sizes))


def _apply_packed(apply: Callable[..., tuple[Tensor, Stats]], *args: Any) -> tuple[Tensor, Stats]:
    return torch.vmap(apply, in_dims=IN_DIMS)(*args)


def _apply_alone(
    apply: Callable[..., tuple[Tensor, Stats]],
    params: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor],
    x: Float[Tensor, "1 tokens in"],
    y: Float[Tensor, "1 tokens out"],
    context: Context,
) -> tuple[Float[Tensor, "1 tokens out"], Stats]:
    """One run without vmap, bit-equal to it; at 1024 tokens of width 192 a pair takes a tenth less, backward included.

    squeeze and not [0], whose backward fills a tensor of zeros and copies.
    """
    own = context._replace(dropped=context.dropped.squeeze(0), real=context.real.squeeze(0))
    tensors = [{role: tensor.squeeze(0) for role, tensor in part.items()} for part in (params, frozen)]
    part, stats = apply(*tensors, x.squeeze(0), y.squeeze(0), own)
    return part[None], {name: value[None] for name, value in stats.items()}
