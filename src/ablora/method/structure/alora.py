"""ALoRA's structure: one pair of factors whose ranks move to the modules where they are worth most."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._ablation import ablations, choose, scores
from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats
from ablora.method.structure._reallocates import Losses, Moved, Probe
from ablora.method.structure.pair import Pair
from ablora.spec import check

PAIR = Pair()


@dataclass(frozen=True, kw_only=True, slots=True)
class Alora:
    """Give every module the same rank, and move ranks between modules by what the loss is with and without each.

    y = W0 x + b + s B (a * A drop(x)),   A (R, n), B (m, R), gates a in {0, 1}: r of them 1 at first, R - r rows empty
    After step t_k of T each living rank i of all M modules is scored on a batch of held-out items,
      IS_i = S(M) - S(M without i) + S(i alone),   S = - mean loss of an answer token,
    the c lowest are pruned (a := 0), and the modules that lost none get c new ranks: A ~ U(-1/sqrt(n),
    1/sqrt(n)), B = 0, a = 1, so that the function changes by what is pruned alone. r M ranks live all through.
      t_k = round(first T) + k round(every T) < T,   k = 0 .. rounds - 1, each distance at least one step.
    A round is 1 + 2 r M forward passes of the batch, a few at a time as rows of one: for 32 word problems at r = 8 in
    28 modules 1.47 million tokens, 86 s on two busy cores where a training step of 16 took 0.26 s.

    Source: arXiv:2403.16187 section 3 (AB-LoRA and ALoRA); no official code. Its values: r = 8, c = M, one epoch of at
        most ten, then up to 8 rounds a quarter of an epoch apart, 32 items of the development set.
    Differs: shares of the run in place of epochs (a tenth and a fortieth are the paper's of ten epochs); no early
        stopping; at most R = headroom r ranks in a module.
    Open in the paper, and settled here: s (the scaling's at r, in every module and for good), the start of new ranks
        (LoRA's, whatever the run's init), how freed ranks are divided (one each, again from the first, by descending
        mean score), what happens where the modules that lost none have no room for c (fewer are pruned) or where a
        module has lost all its ranks (it is the last to get one). A start away from zero has its displacement gated:
        a pruned direction is the base's own again. A module that a start leaves without ranks gets none. Optimizer
        moments of rows that are pruned or begun are zero, under a step count that goes on: Adam's first step of a new
        rank is up to 3.2 times the rate.
    """

    revision: ClassVar[int] = 1
    rewrites: ClassVar[frozenset[str]] = frozenset({"A", "B", "A0", "B0", "gate"})
    first: float
    every: float
    rounds: int
    moves: int | None
    headroom: float
    probe: Probe

    def __post_init__(self) -> None:
        check(0 <= self.first < 1, "first", self.first, "a share of the run's steps, from 0 to below 1")
        check(0 <= self.every < 1, "every", self.every, "a share of the run's steps, from 0 to below 1")
        check(self.rounds >= 0, "rounds", self.rounds, "an integer of at least 0")
        legal = "an integer of at least 1, or null for the number of modules"
        check(self.moves is None or self.moves >= 1, "moves", self.moves, legal)
        check(1 < self.headroom < math.inf, "headroom", self.headroom, "a number over 1: a module's most ranks over r")

    @property
    def experts(self) -> int:
        return 1

    @property
    def split_matters(self) -> bool:
        return False

    def group(self) -> Hashable:
        return "alora"

    def check_rank(self, rank: int) -> None:
        return None

    def rows(self, shape: Shape) -> int:
        """R: headroom r, whole, at most the weight's smaller side and at least r."""
        return max(shape.rank, min(int(self.headroom * shape.rank), shape.out_features, shape.in_features))

    def live(self, frozen: Frozen) -> int:
        return int(frozen["gate"].count_nonzero())

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        return {}

    def count_extra(self, shape: Shape) -> int:
        return 0

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        return {"gate": (torch.arange(self.rows(shape)) < shape.rank).float()}

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        return PAIR.apply(params, gated(frozen), x, y, context)

    def penalty(self, stats: Stats, modules: int) -> None:
        return None

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        return None

    def due(self, step: int, max_steps: int) -> bool:
        begin, gap = (max(1, round(share * max_steps)) for share in (self.first, self.every))
        number, rest = divmod(step - begin, gap)
        return rest == 0 and 0 <= number < self.rounds and step < max_steps

    def reallocate(
        self, modules: Mapping[str, Factors], losses: Losses, draw: Callable[[str], torch.Generator]
    ) -> Moved:
        """Score, choose, close the gates of the pruned and open those of as many empty rows."""
        gates = {name: factors.frozen["gate"] for name, factors in modules.items()}
        found = losses({name: {"gate": variants} for name, variants in ablations(gates).items()})
        choice = choose(scores(found, gates), len(modules) if self.moves is None else self.moves)
        rewritten = {}
        for name, factors in modules.items():
            gate = factors.frozen["gate"]
            gone = choice.pruned[name].to(gate.device)
            begun = first_empty(gate, choice.granted.get(name, 0))
            write(factors, gone, 0.0, torch.zeros_like(factors.params["A"][gone]))
            write(factors, begun, 1.0, fresh(factors.params["A"][begun], draw(name)))
            if (gone | begun).any():
                rewritten[name] = gone | begun
        return Moved(rewritten, sum(choice.granted.values()), found[0].item())

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        """W0 + s (B diag(a) A - B0 diag(a) A0)."""
        return PAIR.merge(weight, params, gated(frozen))

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        """A pair's of the living ranks."""
        lives = frozen["gate"] != 0
        return PAIR.exported({k: t[lives] for k, t in params.items()}, {k: t[lives] for k, t in frozen.items()})


def gated(frozen: Frozen) -> Frozen:
    """The fixed tensors with the gates in the scale."""
    return {**frozen, "scale": frozen["scale"] * frozen["gate"]}


def first_empty(gate: Float[Tensor, " rows"], count: int) -> Tensor:
    """True for the first so many rows whose gate is 0."""
    empty = gate == 0
    return empty & (empty.cumsum(0) <= count)


def fresh(like: Float[Tensor, "ranks in"], generator: torch.Generator) -> Float[Tensor, "ranks in"]:
    """LoRA's start of A, drawn in float32 on the CPU."""
    bound = 1 / math.sqrt(like.shape[1])
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator).to(like)


@torch.no_grad()
def write(factors: Factors, rows: Tensor, gate: float, A: Float[Tensor, "ranks in"]) -> None:
    """Give some rows their A and A0, a zero B and B0, and their gate."""
    own = {**factors.frozen, **factors.params}
    for role in ("A", "A0"):
        if role in own:
            own[role][rows] = A
    for role in ("B", "B0"):
        if role in own:
            own[role][rows] = 0
    own["gate"][rows] = gate
