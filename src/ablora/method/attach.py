"""The one place where the four axes meet: a base model, the members of a pack, and their adapters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from ablora.method.adaptation import ModuleRecord
from ablora.method.dropout import Draw
from ablora.method.export import save_adapter
from ablora.method.full_moe import FullMoE
from ablora.method.init._base import Brought, DataDriven, Init, Site, Start, Triplets
from ablora.method.layer import Layer, out_in, weight_of
from ablora.method.lowrank import LowRank
from ablora.method.member import Member, site_of, wanted
from ablora.method.packed_linear import Copies, Group, PackedLinear, PackState
from ablora.method.ranks import realised
from ablora.method.scaling._base import PerExpert
from ablora.method.seeds import generator
from ablora.method.stack import Stack
from ablora.method.structure._base import Factors, Shape, Stats, inward_rank, with_start
from ablora.method.structure._reallocates import DIRECTIONS, reallocating, rows_of
from ablora.method.targets import find_targets
from ablora.models.rows import Rows, head_of, last_states
from ablora.spec import BadInput, check
from ablora.spectra.library import Library


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a member's tensors are in one module."""

    stack: Stack
    row: int


class Adapted:
    """A model whose targets carry the adapters of a pack; the base weights are frozen and never written."""

    def __init__(self, model: nn.Module, members: Sequence[Member], state: PackState):
        self.model, self.members, self.state = model, tuple(members), state
        self.modules: dict[str, PackedLinear] = {}
        self._records: list[dict[str, ModuleRecord]] = [{} for _ in members]
        self._places: list[dict[str, _Place]] = [{} for _ in members]

    def add(self, layer: PackedLinear, records: Sequence[ModuleRecord | None]) -> None:
        self.modules[layer.name] = layer
        for row, record in enumerate(records):
            if record is not None:
                self._records[row][layer.name] = record
        self._place(layer)

    def keep(self, members: Sequence[int]) -> None:
        """Let the other members go; these take the rows 0, 1, ... in their order. Call it between steps."""
        self.members = tuple(self.members[i] for i in members)
        self._records = [self._records[i] for i in members]
        self._places = [{} for _ in members]
        self.state.runs = len(members)
        self.state.stats.clear()
        for layer in self.modules.values():
            layer.keep(members)
            self._place(layer)

    def _place(self, layer: PackedLinear) -> None:
        for group in layer.groups:
            for row in range(group.rows.start, group.rows.stop):
                if group.stack is not None:
                    self._places[row][layer.name] = _Place(group.stack, row - group.rows.start)

    def adapted(self, member: int) -> dict[str, PackedLinear]:
        """The modules in which a member has an adapter: all targets, but for those whose rank is 0."""
        return {name: self.modules[name] for name in self._places[member]}

    @property
    def records(self) -> list[dict[str, ModuleRecord]]:
        """What was realised, by module, with the ranks as they are now."""
        return [{name: self._now(i, name, record) for name, record in own.items()}
                for i, own in enumerate(self._records)]  # fmt: skip

    def _now(self, member: int, name: str, record: ModuleRecord) -> ModuleRecord:
        structure, place = reallocating(self.members[member].method), self._places[member].get(name)
        if structure is None or place is None or not record.rank:
            return record
        rank = structure.live(place.stack.constants(place.row))
        return record._replace(rank=rank, parameters=record.parameters // record.rank * rank)

    def parameters(self, member: int) -> dict[str, Parameter]:
        """A member's trainable tensors by `module.role`, at their true rank."""
        return {
            f"{name}.{role}": parameter
            for name, place in self._places[member].items()
            for role, parameter in place.stack.views[place.row].items()
        }

    def roles(self, member: int) -> dict[str, list[Parameter]]:
        """The same by role: A, B, router, ..."""
        out: dict[str, list[Parameter]] = {}
        for name, parameter in self.parameters(member).items():
            out.setdefault(name.rpartition(".")[2], []).append(parameter)
        return out

    def constants(self, member: int) -> dict[str, Tensor]:
        """A member's fixed tensors by `module.role`."""
        return {
            f"{name}.{role}": tensor
            for name, place in self._places[member].items()
            for role, tensor in place.stack.constants(place.row).items()
        }

    def factors(self, member: int) -> dict[str, Factors]:
        """A member's tensors by module, as its structure knows them; trained ones are the run's own parameters."""
        return {name: place.stack.factors(place.row) for name, place in self._places[member].items()}

    def write(self, member: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a member's tensors, named as `parameters` and `constants` name them."""
        for name, tensor in tensors.items():
            module, _, role = name.rpartition(".")
            place = self._places[member][module]
            place.stack.write(place.row, {role: tensor})

    def hand_out_gradients(self) -> None:
        for stack in self._stacks():
            stack.hand_out_gradients()

    def clear_gradients(self) -> None:
        for stack in self._stacks():
            stack.clear_gradients()

    def _stacks(self) -> Iterator[Stack]:
        for layer in self.modules.values():
            for group in layer.groups:
                if group.stack is not None:
                    yield group.stack

    def stats(self, member: int) -> dict[str, Stats]:
        """What the structures of the last forward pass reported for one member, by module."""
        out = {}
        for name in self.modules:
            for rows, stats in self.state.stats[name]:
                if rows.start <= member < rows.stop:
                    out[name] = {key: value[member - rows.start] for key, value in stats.items()}
        return out

    def penalty(self, member: int) -> Tensor | None:
        """What the member's structure adds to its loss, from the last forward pass; None: nothing."""
        method = self.members[member].method
        if method is None:
            return None
        found = self.stats(member)
        shares = [method.structure.penalty(stats, len(found)) for stats in found.values()]
        present = [share for share in shares if share is not None]
        return torch.stack(present).sum() if present else None

    def hidden(
        self, rows: Rows, draws: Sequence[Draw] | None = None, beside_base: bool = False
    ) -> Float[Tensor, "runs tokens width"]:
        """The last hidden states, a row per member, and behind them the base's from the same pass if it is asked."""
        state = self.state
        state.real, state.draws = rows.real, draws
        state.first, state.runs = rows.first, len(rows.ids)
        try:
            return last_states(cast(PreTrainedModel, self.model), rows)
        finally:
            state.real = state.draws = None
            state.first, state.runs = 0, len(self.members)

    def hidden_of_variants(
        self, member: int, rows: Rows, constants: Mapping[str, Mapping[str, Tensor]]
    ) -> Float[Tensor, "variants tokens width"]:
        """The last hidden states of one member, with other fixed tensors in every row (by module and role, stacked)."""
        state = self.state
        runs, state.runs = state.runs, len(rows.ids)
        state.real, state.copies = rows.real, Copies(member, constants)
        try:
            return last_states(cast(PreTrainedModel, self.model), rows)
        finally:
            state.real = state.copies = None
            state.runs = runs

    def logits(self, hidden: Float[Tensor, "*rows width"], beside_base: bool = False) -> Float[Tensor, "*rows vocab"]:
        """The head is the base's for every row."""
        return head_of(cast(PreTrainedModel, self.model))(hidden)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Any, self.model).generate(**inputs)

    def save(self, member: int, folder: Path) -> None:
        save_adapter(self, member, folder)

    def detach(self) -> None:
        """Give the model its own layers back; the base is as it was before `attach`."""
        for name, layer in self.modules.items():
            self.model.set_submodule(name, layer.base)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the base."""
        self.state.enabled = False
        try:
            yield
        finally:
            self.state.enabled = True


@torch.no_grad()
def attach(model: nn.Module, members: Sequence[Member], library: Library) -> Adapted:
    """Adapt the target modules of `model` for all members; at step 0 each member computes what its start says.

    The order is forced: a scale is needed to build factors, factors to build a module. Members whose structures run
    in one vmap must be neighbours in the pack's order. Base parameters stop requiring gradients.
    """
    first = members[0].adapter
    same = all((m.adapter.targets, m.adapter.compute_dtype) == (first.targets, first.compute_dtype) for m in members)
    check(same, "adapter", [m.adapter for m in members], "one choice of targets and compute_dtype within a pack")
    model.requires_grad_(False).eval()
    state = PackState(len(members), getattr(torch, first.compute_dtype))
    adapted = Adapted(model, members, state)
    layers = find_targets(model, first.targets)
    ranks = [_ranks(member, layers, library) for member in members]
    for name, linear in layers.items():
        layer, records = _pack_module(name, linear, members, [own.get(name, 0) for own in ranks], state, library)
        model.set_submodule(name, layer)
        adapted.add(layer, records)
    return adapted


def _ranks(member: Member, layers: Mapping[str, Layer], library: Library) -> dict[str, int]:
    """A member's rank by module; none for the untouched base, and for what has no rank."""
    method = member.method
    if not isinstance(method, LowRank):
        return {}
    if isinstance(method.init, Brought):
        method.init.require(method.structure, member.rank or None, {name: out_in(m) for name, m in layers.items()})
        return {name: method.init.rank(name) for name in layers}
    for name, layer in layers.items():
        require_rank(name, Shape(*out_in(layer), member.rank), method)
    sites = {name: site_of(name, layer, member, method, member.rank) for name, layer in layers.items()}
    times = member.rank // inward_rank(method.structure, member.rank)
    return {name: times * rows for name, rows in realised(method.init, sites, library).items()}


def _pack_module(
    name: str, linear: Layer, members: Sequence[Member], ranks: Sequence[int], state: PackState, library: Library
) -> tuple[PackedLinear, list[ModuleRecord | None]]:
    asked = [wanted(name, linear, m, rank) for m, rank in zip(members, ranks)]
    library.expect(weight_of(linear), [indices for indices in asked if indices is not None])
    built = [_built(name, linear, m, rank, library) for m, rank in zip(members, ranks)]
    groups = []
    for _, run in groupby(range(len(members)), key=lambda i: _group_key(members[i], built[i])):
        rows = list(run)
        parts = [part for i in rows if (part := built[i]) is not None]
        method = members[rows[0]].method
        stack = Stack([p.params for p in parts], [p.frozen for p in parts], parts[0].held) if parts else None
        structure = None if method is None or stack is None else method.structure
        groups.append(Group(structure, slice(rows[0], rows[-1] + 1), stack))
    records = [_ABSENT if b is None else b.record for b in built]
    return PackedLinear(linear, name, groups, state), [r if m.method else None for m, r in zip(members, records)]


_ABSENT = ModuleRecord(None, 0, 0)
"""Of a module that a member has no adapter in."""


class _Built(NamedTuple):
    params: dict[str, Tensor]
    """What is trained."""
    frozen: dict[str, Tensor]
    held: frozenset[str]
    """Names in `frozen` that the structure has as parameters."""
    record: ModuleRecord


def _group_key(member: Member, built: _Built | None) -> object:
    if member.method is None or built is None:
        return None
    return member.method.structure.group(), "A0" in built.frozen, built.held


def _built(name: str, linear: Layer, member: Member, rank: int, library: Library) -> _Built | None:
    """A member's tensors in one module, whatever kind its method is of; None where it has none."""
    match member.method:
        case FullMoE() as method:
            return _build_full(name, linear, member, method)
        case LowRank() as method if rank > 0:
            return _build(name, linear, member, method, rank, library)
        case _:
            return None


def _build(name: str, linear: Layer, member: Member, method: LowRank, rank: int, library: Library) -> _Built:
    """One member's tensors in one module, in the factors' own dtype on the weight's device."""
    site = site_of(name, linear, member, method, rank)
    weight, shape = site.weight, Shape(*out_in(linear), rank)
    start, scales = _start(site, method, library)
    zero = torch.zeros(rank, shape.out_features)
    A, B = start.A, zero if start.B is None else start.B.repeat(rank // site.rank, 1)
    own = {"A": A, "B": B, **method.structure.extra(shape, site.generator, weight), **(start.learnt or {})}
    held = frozenset(role for role in own if not method.update.trains(role))
    params = {role: tensor for role, tensor in own.items() if role not in held}
    frozen = {
        "scale": torch.tensor(scales, dtype=torch.float64).repeat_interleave(rank // len(scales)),
        **with_start(start),
        **method.structure.constants(shape, weight),
        **{role: own[role] for role in held},
    }
    count = sum(tensor.numel() for tensor in params.values())
    spare = rows_of(method.structure, shape) - rank
    params, frozen = _with_room(params, spare), _with_room(frozen, spare)
    record = ModuleRecord(scales[0] if len(scales) == 1 else scales, rank, count)
    return _Built(_placed(params, weight, member), _placed(frozen, weight, member), held, record)


def _build_full(name: str, linear: Layer, member: Member, method: FullMoE) -> _Built:
    weight, shape = weight_of(linear), Shape(*out_in(linear), 0)
    params = method.structure.extra(shape, generator("init", member.seed, name), weight)
    frozen = method.structure.constants(shape, weight)
    record = ModuleRecord(None, None, sum(tensor.numel() for tensor in params.values()))
    return _Built(_placed(params, weight, member), _placed(frozen, weight, member), frozenset(), record)


def _placed(tensors: Mapping[str, Tensor], weight: Tensor, member: Member) -> dict[str, Tensor]:
    """In the factors' own dtype, on the weight's device."""
    dtype = torch.float64 if member.adapter.compute_dtype == "float64" else torch.float32
    return {role: tensor.to(weight.device, dtype).contiguous() for role, tensor in tensors.items()}


def _with_room(own: Mapping[str, Tensor], spare: int) -> dict[str, Tensor]:
    """So many empty rows behind the rank's, at the same s."""
    if spare == 0:
        return dict(own)
    room = {role: tensor.new_zeros(spare, tensor.shape[1]) for role, tensor in own.items() if role in DIRECTIONS}
    room |= {role: tensor[-1:].expand(spare) for role, tensor in own.items() if role == "scale"}
    return {role: torch.cat([tensor, room[role]]) if role in room else tensor for role, tensor in own.items()}


def _start(site: Site, method: LowRank, library: Library) -> tuple[Start, tuple[float, ...]]:
    """The starting factors, and s: one, or one per expert."""
    triplets = _triplets(site, method.init, library)
    if site.experts == 1 or not isinstance(method.scaling, PerExpert):
        return method.init(site, triplets), (float(site.scale),)
    assert triplets is not None, "crossings are checked: one s per expert goes with starts from the spectrum"
    own = method.scaling.by_expert(float(site.scale), triplets.sigma.unflatten(0, (site.experts, -1)))
    spread = own.to(triplets.sigma).repeat_interleave(site.rank // site.experts)
    return method.init(replace(site, scale=spread), triplets), tuple(own.tolist())


def _triplets(site: Site, init: Init, library: Library) -> Triplets | None:
    indices = init.indices(site)
    if indices is None:
        return None
    spectrum = library.spectrum(init.matrix(site) if isinstance(init, DataDriven) else site.weight, indices)
    at = spectrum.positions(indices)
    assert at is not None
    return Triplets(spectrum.u[at], spectrum.sigma[indices], spectrum.v[at])


def require_rank(name: str, shape: Shape, method: LowRank) -> None:
    """Refuse a rank that the module's weight or the method's structure cannot hold."""
    largest = min(shape.out_features, shape.in_features)
    if not 1 <= shape.rank <= largest:
        raise BadInput("rank", shape.rank, f"1 to {largest}, the smaller side of {name}")
    if isinstance(method.init, DataDriven):
        most = method.init.largest_rank(shape.out_features, shape.in_features)
        check(shape.rank <= most, "rank", shape.rank, f"1 to {most}, what {type(method.init).__name__} has for {name}")
    method.structure.check_rank(shape.rank)
