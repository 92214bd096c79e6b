"""A budget in place of a rank: of trainable parameters (`budget.params=200k`, `budget.like=lora:8`), of memory
(`budget.memory=1.5GiB`) or of a step's cost (`budget.step=lora:8`).

The rank is solved per method and model before the specification is built, and stands in it as if it had been written:
a run's id knows nothing of budgets. Where the data decide the ranks of modules (EVA), it is the rank that has the
budget when all modules get it: there are as many directions then, and what they cost is known with the data.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablora.config.compose import Composer, resolve
from ablora.config.loader import require_choice
from ablora.spec import AdapterSpec, BadInput, check
from ablora.tree import build

if TYPE_CHECKING:
    from ablora.method.budget import Reached, Sized

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")
UNIT = {"": 1, "k": 1_000, "M": 1_000_000}
BYTES = re.compile(r"(\d+(?:\.\d+)?) ?(MiB|GiB)")
BYTE_UNIT = {"MiB": 2**20, "GiB": 2**30}
FIELDS = ("params", "like", "memory", "step")
"""Of which at most one is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How many trainable parameters every run shall have, how much memory it may take, or what its step shall cost: at
    most one of `params`, `like`, `memory` and `step` is given."""

    params: int | float | str | None = None
    """A number, which may end in k (10^3) or M (10^6)."""
    like: str | None = None
    """PRESET:RANK, what that preset has at that rank on the run's model and targets."""
    memory: str | None = None
    """A number and MiB or GiB: the largest rank whose predicted peak, of the run alone, is within it."""
    step: str | None = None
    """PRESET:RANK, whose step costs as many multiply-adds per token; counted, since a measured time would make the
    rank, and the run's id, depend on the machine's noise."""
    tolerance: float = 0.05
    """Largest share of the budget by which a run may miss it; `memory` is a bound and has none."""

    def __post_init__(self) -> None:
        given = [name for name in FIELDS if getattr(self, name) is not None]
        for name in given[1:]:
            check(False, name, getattr(self, name), f"null where budget.{given[0]} is given")
        check(0 <= self.tolerance < 1, "tolerance", self.tolerance, "a share of the budget in [0, 1), such as 0.05")
        if self.params is not None:
            check(amount(self.params) >= 1, "params", self.params, "at least 1")
        if self.memory is not None:
            bytes_of(self.memory)
        if self.like is not None or self.step is not None:
            self.reference()

    @property
    def given(self) -> tuple[str, int | float | str] | None:
        """The field that says the budget, and its value; None where there is no budget."""
        found = [(f"budget.{name}", value) for name in FIELDS if (value := getattr(self, name)) is not None]
        return found[0] if found else None

    def reference(self) -> tuple[str, int]:
        """Preset and rank of `like` or `step`."""
        name, text = ("like", self.like) if self.like is not None else ("step", self.step)
        preset, _, rank = str(text).partition(":")
        check(bool(preset) and rank.isdecimal() and int(rank) >= 1, name, text, "PRESET:RANK, such as lora:8")
        return preset, int(rank)


def bytes_of(text: str) -> int:
    """1610612736 of "1.5GiB"."""
    match = BYTES.fullmatch(str(text))
    if match is None:
        raise BadInput("memory", text, "a number and MiB or GiB, such as 1.5GiB")
    return int(Decimal(match[1]) * BYTE_UNIT[match[2]])


def amount(text: int | float | str) -> int:
    """200000 of 200000, "200k" or "0.2M"."""
    match = AMOUNT.fullmatch(str(text))
    value = Decimal(match[1]) * UNIT[match[2]] if match else Decimal("0.5")
    if match is None or value != int(value):
        raise BadInput("params", text, "a whole number of parameters, such as 200000, 200k or 1.5M")
    return int(value)


Tree = dict[str, Any]


def solved(composer: Composer, tree: Tree, overrides: Sequence[str] = ()) -> "tuple[Tree, int | Reached | None]":
    """A cell's unresolved tree as a resolved one without `budget`, and the parameters it was to have, or what it was
    to take and takes; None where no budget is given, and the rank is what it was. `overrides` are those that made the
    tree: none may set the rank."""
    budget = _budget(composer, composer.part(tree, "budget"))
    tree = {key: value for key, value in tree.items() if key != "budget"}
    if budget.given is None:
        return composer.resolve(tree), None
    own = any(override.lstrip("+~").partition("=")[0] == "rank" for override in overrides)
    legal = f"left out where {budget.given[0]} is given, which solves the rank"
    check(not own and tree["rank"] == composer.base([])["rank"], "rank", tree["rank"], legal)
    if budget.memory is not None or budget.step is not None:
        return _costed(composer, tree, budget)
    # The method as it is written (its fields may be ${rank}) and what all three resolve to, by identity.
    name = (budget, id(tree["method"]), *(id(composer.part(tree, key)) for key in ("method", "model", "adapter")))
    if name not in composer.ranks:
        target = _target(composer, tree, budget)
        composer.ranks[name] = _nearest(composer, tree, budget, target), target
    rank, target = composer.ranks[name]
    return composer.resolve({**tree, "rank": rank}), target


def _costed(composer: Composer, tree: Tree, budget: Budget) -> "tuple[Tree, Reached]":
    """The same for memory and step, which ask for whole runs; once for all that differ in the seed alone."""
    from ablora.config.budget_cost import fitting, nearest_step  # late: it imports torch

    keys = [key for key in tree if key not in ("seed", "rank", "study", "tracker", "cluster")]
    name = (budget, id(tree["method"]), *(id(composer.part(tree, key)) for key in keys if isinstance(tree[key], dict)))
    if name not in composer.ranks:
        composer.ranks[name] = (fitting if budget.memory is not None else nearest_step)(composer, tree, budget)
    rank, reached = composer.ranks[name]
    return composer.resolve({**tree, "rank": rank}), reached


def _budget(composer: Composer, tree: Any) -> Budget:
    try:
        if id(tree) not in composer.budgets:  # the composer keeps its parts
            composer.budgets[id(tree)] = build(tree, Budget)
        return composer.budgets[id(tree)]
    except BadInput as error:
        raise error.under("budget") from error


def _target(composer: Composer, tree: dict[str, Any], budget: Budget) -> int:
    """The budget as a number on the tree's model."""
    from ablora.method.plan import count  # late, here and below: it imports torch

    if budget.params is not None:
        return amount(budget.params)
    preset, rank = budget.reference()
    try:
        require_choice(composer.loader, "method", preset)
        # The preset as it is written: nothing that the cell sets of its own method.
        own = composer.base([f"method={preset}"])["method"]
        return count(build(resolve({**tree, "method": own, "rank": rank})["method"]), *_place(tree), rank)
    except BadInput as error:
        if error.field_name not in ("method", "rank"):
            raise
        raise BadInput("budget.like", budget.like, f"PRESET:RANK; its {error.field_name} is {error.legal}") from error


def _nearest(composer: Composer, tree: dict[str, Any], budget: Budget, target: int) -> int:
    """The rank whose count is nearest; refused with its neighbours where that is over the tolerance away."""
    from ablora.method.budget import around, nearest

    sizes = _known_sizes(composer, tree)
    found, (name, value) = nearest(target, sizes), budget.given or ("", "")
    if abs(found.parameters - target) > budget.tolerance * target:
        some = "any rank" if len(sizes) == 1 else "rank {}"
        sides = [f"{size.parameters:,} at {some.format(size.rank)}" for size in around(target, sizes)]
        none = [] if len(sides) == 2 else ["none less" if found.parameters > target else "none more"]
        method = resolve(tree)["method"]["name"]
        legal = (
            f"a count that {method} comes within {budget.tolerance:.3g} of (budget.tolerance); near {target:,} it has "
        )
        raise BadInput(name, value, legal + " and ".join([*sides, *none]))
    return found.rank


def _known_sizes(composer: Composer, tree: dict[str, Any]) -> "list[Sized]":
    """`_sizes`, once for all cells of a composer that have the same method, model and targets."""
    own = ("method", "model", "adapter")
    resolved = resolve(tree)
    key = json.dumps([[part[name] for name in own] for part in (tree, resolved)], sort_keys=True)
    if key not in composer.sizes:
        composer.sizes[key] = list(_sizes(tree))
    return composer.sizes[key]


def _sizes(tree: dict[str, Any]) -> "Iterator[Sized]":
    """The method's trainable parameters at every rank that it can have on the model; BadInput if at none."""
    from ablora.method.budget import Sized
    from ablora.method.plan import count, ranks

    folder, targets = _place(tree)
    trees = [resolve({**tree, "rank": rank})["method"] for rank in (1, 2)]
    fixed = build(trees[0]) if trees[0] == trees[1] else None  # else a field refers to ${rank}
    refusal, some = None, False
    if fixed is not None and not fixed.has_rank:
        yield Sized(1, count(fixed, folder, targets, None))  # of one size, whatever the rank
        return
    for rank in ranks(folder, targets):
        try:
            method = fixed or build(resolve({**tree, "rank": rank})["method"])
            yield Sized(rank, count(method, folder, targets, rank))
            some = True
        except BadInput as error:
            if error.field_name not in ("rank", "config", "method.config"):  # a tuner's number that is ${rank}
                raise
            refusal = error
    if refusal is not None and not some:
        raise refusal


def _place(tree: dict[str, Any]) -> tuple[Path, str | tuple[str, ...]]:
    """The model's folder and the targets, as they stand in a specification."""
    own = resolve(tree)
    try:
        model = build(own["model"])
    except BadInput as error:
        raise error.under("model") from error
    try:
        return model.folder, build(own["adapter"], AdapterSpec).targets
    except BadInput as error:
        raise error.under("adapter") from error
