"""What the trainer and the evaluations need of a model in training, whatever is trained in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from ablora.method.dropout import Draw
from ablora.method.structure._base import Factors, Stats
from ablora.models.rows import Rows, cross_entropies


class ModuleRecord(NamedTuple):
    """What was realised in one module."""

    scaling: float | tuple[float, ...] | None
    """s; of every expert where they differ in it; None for what has no scale."""
    rank: int | None
    """None for what has no rank."""
    parameters: int


@runtime_checkable
class Method(Protocol):
    """One frozen dataclass per kind of method: `LowRank` with its four choices, and those that are no low-rank pair."""

    has_rank: ClassVar[bool]
    """False: the run's `rank` is null whatever was asked, so that a sweep over ranks runs it once."""
    packs: ClassVar[bool]
    """Whether runs of it share a base with others; False: a pack of one."""

    @property
    def name(self) -> str: ...

    @property
    def split_matters(self) -> bool:
        """Whether the cut into micro-batches changes what is learnt, without dropout."""
        ...

    def groups(self, roles: Mapping[str, list[Parameter]], lr: float) -> list[dict[str, Any]]:
        """The optimizer's parameter groups: every trainable parameter in exactly one."""
        ...

    def step(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, Factors]) -> dict[str, float]:
        """One optimizer step from the clipped gradients; returns what is worth a record."""
        ...

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        """What follows a step: a schedule's masks. `state` is kept in checkpoints."""
        ...


@runtime_checkable
class Adaptation(Protocol):
    """A base model with the trainable parts of a pack's members. The base itself is never changed: `detach` gives it
    back as it was, and its own output stays to be had beside the members'."""

    @property
    def records(self) -> Sequence[Mapping[str, ModuleRecord]]:
        """Per member, by module."""
        ...

    def parameters(self, member: int) -> dict[str, Parameter]:
        """A member's trainable tensors, by names that a checkpoint can keep."""
        ...

    def roles(self, member: int) -> dict[str, list[Parameter]]:
        """The same by what they are: A, B, router, ..."""
        ...

    def factors(self, member: int) -> Mapping[str, Factors]:
        """A member's low-rank factors by module; empty for what has none."""
        ...

    def hidden(
        self, rows: Rows, draws: Sequence[Draw] | None = None, beside_base: bool = False
    ) -> Float[Tensor, "runs tokens width"]:
        """The last hidden states, a row per member; `draws`: dropout. With `beside_base` the last row is the base's."""
        ...

    def logits(self, hidden: Float[Tensor, "*rows width"], beside_base: bool = False) -> Float[Tensor, "*rows vocab"]:
        """The output head; with `beside_base` the first dimension is runs, and the last row meets the base's head."""
        ...

    def generate(self, **inputs: Any) -> Tensor:
        """transformers' `generate`; rows are run-major and equally many per run."""
        ...

    def stats(self, member: int) -> Mapping[str, Stats]:
        """What was reported of the last forward pass, by module."""
        ...

    def penalty(self, member: int) -> Tensor | None:
        """What is added to the member's loss, from the last forward pass; None: nothing."""
        ...

    def clear_gradients(self) -> None: ...

    def hand_out_gradients(self) -> None:
        """After backward: every parameter of `parameters` has its gradient."""
        ...

    def save(self, member: int, folder: Path) -> None:
        """Write what the member learnt, each file whole."""
        ...

    def keep(self, members: Sequence[int]) -> None:
        """Let the other members go, at least one and not all; these take the rows 0, 1, ... in their order."""
        ...

    def detach(self) -> None: ...


def label_losses_of(adapted: Adaptation, rows: Rows, draws: Sequence[Draw] | None = None) -> Float[Tensor, " labels"]:
    """Cross-entropy in nats of every label, in float32; logits exist at label positions only."""
    return cross_entropies(adapted.logits(adapted.hidden(rows, draws)[rows.predicts]), rows.labels)
