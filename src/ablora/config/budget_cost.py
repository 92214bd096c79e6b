"""Ranks for a budget of memory (`budget.memory`) or of a step's cost (`budget.step`), from whole specifications."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ablora.config.budget import Budget, bytes_of
from ablora.config.compose import Composer
from ablora.config.loader import require_choice
from ablora.method.budget import Reached, largest_within
from ablora.method.plan import ranks
from ablora.spec import BadInput, RunSpec, check
from ablora.train.memory import predict
from ablora.train.step_cost import step_cost
from ablora.tree import build

Tree = dict[str, Any]
KEYS = tuple(f.name for f in fields(RunSpec))


def fitting(composer: Composer, tree: Tree, budget: Budget) -> tuple[int, Reached]:
    """The largest rank at which the run alone is predicted to stay within the memory."""
    limit, legal_ranks = bytes_of(str(budget.memory)), _ranks(composer, tree)

    def peak(rank: int) -> int:
        return predict([_run(composer, tree, rank)]).peak_bytes

    rank = largest_within(limit, legal_ranks, peak)
    if rank is None:
        least = legal_ranks[0]
        name = _run(composer, tree, least).method.name
        raise BadInput(
            "budget.memory", budget.memory, f"at least {_gib(peak(least))}, what {name} takes at rank {least}"
        )
    return rank, Reached("budget.memory", str(budget.memory), f"predicted {_gib(peak(rank))}")


def nearest_step(composer: Composer, tree: Tree, budget: Budget) -> tuple[int, Reached]:
    """The rank at which a step costs nearest what the reference's does."""
    target, legal_ranks = _reference(composer, tree, budget), _ranks(composer, tree)

    def cost(rank: int) -> int:
        return step_cost(_run(composer, tree, rank))

    below = largest_within(target, legal_ranks, cost) or legal_ranks[0]
    above = legal_ranks[min(legal_ranks.index(below) + 1, len(legal_ranks) - 1)]
    rank = min((below, above), key=lambda r: (abs(cost(r) - target), r))
    off = (cost(rank) - target) / target
    if abs(off) > budget.tolerance:
        sides = " and ".join(f"{cost(r):,} at rank {r}" for r in dict.fromkeys((below, above)))
        name = _run(composer, tree, rank).method.name
        legal = f"a cost that {name} comes within {budget.tolerance:.3g} of (budget.tolerance); near {target:,} it has "
        raise BadInput("budget.step", budget.step, legal + sides)
    return rank, Reached("budget.step", str(budget.step), f"{cost(rank):,} multiply-adds a token, {off:+.1%}")


def _reference(composer: Composer, tree: Tree, budget: Budget) -> int:
    preset, rank = budget.reference()
    try:
        require_choice(composer.loader, "method", preset)
        own = composer.base([f"method={preset}"])["method"]
        run = _run(composer, {**tree, "method": own}, rank)
        if (structure := getattr(run.method, "structure", None)) is not None:
            structure.check_rank(rank)
        return step_cost(run)
    except BadInput as error:
        if error.field_name.partition(".")[0] not in ("method", "rank"):
            raise
        raise BadInput("budget.step", budget.step, f"PRESET:RANK; its {error.field_name} is {error.legal}") from error


def _run(composer: Composer, tree: Tree, rank: int) -> RunSpec:
    resolved = composer.resolve({**tree, "rank": rank})
    return build({key: resolved[key] for key in KEYS}, RunSpec)


def _ranks(composer: Composer, tree: Tree) -> list[int]:
    """Those that the method may have on the model; one for a method that has no rank."""
    first = _run(composer, tree, 1)
    if not getattr(first.method, "has_rank", True):
        return [1]
    check_rank: Callable[[int], None] = first.method.structure.check_rank
    legal = [rank for rank in ranks(first.model.folder, first.adapter.targets) if _passes(check_rank, rank)]
    check(bool(legal), "rank", 1, "a rank that the method may have on this model")
    return legal


def _passes(check_rank: Callable[[int], None], rank: int) -> bool:
    try:
        check_rank(rank)
    except BadInput:
        return False
    return True


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}GiB"
