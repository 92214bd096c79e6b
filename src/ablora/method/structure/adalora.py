"""AdaLoRA's structure: a triplet of factors whose directions are given up where the loss is least sensitive."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.structure._allocation import Schedule, keep, observe, scores
from ablora.method.structure._base import Context, Exported, Factors, Frozen, Params, Shape, Stats
from ablora.method.structure._product import product
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Orthogonality:
    """How strongly the rows of A and the columns of B are drawn to an orthonormal set.

    convention    what is added to the loss, with a = |A A^T - I|_F, b = |B^T B - I|_F of each of M modules
    squared_sum   c sum_modules (a^2 + b^2)            the paper's section 3.1
    norm_mean     c sum_modules (a + b) / (2 M)        both programs; c = 0.1 in the original, 0.5 in PEFT

    At c = 0.1, rank 4, 14 modules of width 32 and 25 steps at rate 3e-3 the loss fell by 0.02 with the first and by
    0.14 with the second; at 3e-2 by 1.8 and 2.4: tune rates for each.
    """

    coefficient: float
    convention: Literal["squared_sum", "norm_mean"]

    def __post_init__(self) -> None:
        check(self.coefficient >= 0, "coefficient", self.coefficient, "a number of at least 0")

    def of_module(self, a: Float[Tensor, ""], b: Float[Tensor, ""], modules: int) -> Float[Tensor, ""]:
        """One module's share."""
        value = {"squared_sum": a.square() + b.square(), "norm_mean": (a + b) / (2 * modules)}[self.convention]
        return self.coefficient * value


@dataclass(frozen=True, kw_only=True, slots=True)
class Adalora:
    """Learn a product in the form of singular triplets, and zero those that matter least until a budget is met.

    y = W0 x + b + s B (e * A drop(x)),   A (r, n), B (m, r), e of E (r, 1): r the rank at first
    e = E where A and B both start away from zero, 1 + E where B starts at zero (LoRA's start); E starts at 0, so the
    product is exactly 0 at step 0, nothing is displaced, and some factor has a gradient.
    After step t of T the `budget(t)` directions of the highest scores over all modules stay, of the others e := 0,
    with b_0 = r M, b_T = target_rank M (null: two thirds of r, as PEFT's 12 and 8) for M modules; see `Schedule`.
      S_i = F(e_i) + mean_j F(A_ij) + mean_j F(B_ji),   F(w) = I'(w) U'(w), see `observe`: of the gradient of the step
    and the value after it, while t < T - t_f. Between prunings a zeroed e may grow again.

    Source: arXiv:2303.10512 sections 3.1 to 3.3; huggingface/peft 0.21.2 tuners/adalora/layer.py, model.py;
        QingruZhang/AdaLoRA@d10f5eb loralib/loralib/adalora.py. With `init: gaussian_both`.
    Differs: s is the scaling's (the programs add 1e-5 to the rank); exactly the budget stays, also with equal scores;
        no pruning where target_rank is the rank (PEFT fails there); the penalty is not added in evaluations. A start
        that decomposes the weight gives the first directions, and e = 0 leaves the base whole. PEFT's layout, which
        has no masks, gets e within B.
    """

    revision: ClassVar[int] = 1
    target_rank: int | None
    schedule: Schedule
    orthogonality: Orthogonality
    beta1: float
    beta2: float

    def __post_init__(self) -> None:
        least = self.target_rank is None or self.target_rank >= 1
        check(least, "target_rank", self.target_rank, "an integer of at least 1, or null for two thirds of the rank")
        for name in ("beta1", "beta2"):
            check(0 < getattr(self, name) < 1, name, getattr(self, name), "a number between 0 and 1")

    @property
    def experts(self) -> int:
        return 1

    @property
    def split_matters(self) -> bool:
        return False

    def group(self) -> Hashable:
        return "adalora"

    def check_rank(self, rank: int) -> None:
        target = self.target_rank or 1
        check(
            rank >= target,
            "rank",
            rank,
            f"at least method.structure.target_rank ({target}): rank is what it falls from",
        )

    def target(self, rank: int) -> int:
        """Directions per module at the end, on average."""
        return max(1, 2 * rank // 3) if self.target_rank is None else self.target_rank

    def extra(self, shape: Shape, generator: torch.Generator, weight: Tensor) -> dict[str, Tensor]:
        return {"E": torch.zeros(shape.rank, 1)}

    def count_extra(self, shape: Shape) -> int:
        return shape.rank

    def constants(self, shape: Shape, weight: Tensor) -> dict[str, Tensor]:
        return {"present": torch.ones(shape.rank)}

    def apply(
        self,
        params: Params,
        frozen: Frozen,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        context: Context,
    ) -> tuple[Float[Tensor, "tokens out"], Stats]:
        dtype = context.dropped.dtype
        A, B = params["A"], params["B"]
        weighed = (
            strength(params, frozen)[:, None] * A
        )  # not the hidden vector: a sum over tokens is not packed bit for bit
        hidden = product(context.dropped, weighed.to(dtype).mT)
        stats = {
            "orthogonality_A": distance(product(A, A.mT), frozen["present"]),
            "orthogonality_B": distance(product(B, B.mT), frozen["present"]),
        }
        return y + product(hidden, B.to(dtype)), stats

    def penalty(self, stats: Stats, modules: int) -> Float[Tensor, ""] | None:
        if self.orthogonality.coefficient == 0:
            return None
        return self.orthogonality.of_module(stats["orthogonality_A"], stats["orthogonality_B"], modules)

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        """Observe, choose and zero; once T - t_f is reached `state` holds which directions stay, and nothing else."""
        end = self.schedule.end(max_steps)
        if step < end:
            self._observe(modules, state)
        if self.schedule.prunes(step, max_steps) or (step > end and not is_settled(modules, state)):
            for name, stays in self._choose(modules, state, step, max_steps).items():
                if step >= end:
                    forget(state, f"{name}.")
                    state[f"{name}.stays"] = stays
                prune(modules[name], stays)
        elif step > end:
            for name, factors in modules.items():
                prune(factors, state[f"{name}.stays"])

    def _observe(self, modules: Mapping[str, Factors], state: dict[str, Tensor]) -> None:
        for name, (params, frozen) in modules.items():
            for role, value in {**params, "E": gain(params, frozen)}.items():
                grad = params[role].grad
                if grad is not None:
                    observe(value, grad, state, f"{name}.{role}", (self.beta1, self.beta2))

    def _choose(
        self, modules: Mapping[str, Factors], state: Mapping[str, Tensor], step: int, max_steps: int
    ) -> dict[str, Tensor]:
        found = {name: scores(state, factors.params, name) for name, factors in modules.items()}
        ranks = [len(score) for score in found.values()]
        target = sum(min(rank, self.target(rank)) for rank in ranks)  # a module of redistributed ranks may have fewer
        return keep(found, self.schedule.budget(step, max_steps, sum(ranks), target))

    def merge(self, weight: Float[Tensor, "out in"], params: Params, frozen: Frozen) -> Float[Tensor, "out in"]:
        """W0 + s B diag(e) A."""
        return weight + (params["B"] * strength(params, frozen)[:, None]).mT @ params["A"]

    def exported(self, params: Params, frozen: Frozen) -> Exported:
        """A, and B with s e in it: a pruned direction is a column of zeros."""
        return Exported(params["A"], params["B"] * strength(params, frozen)[:, None])


def gain(params: Params, frozen: Frozen) -> Float[Tensor, "rank 1"]:
    """e of every direction, which counts from 1 where B starts at zero."""
    return params["E"] if "A0" in frozen else 1 + params["E"]


def strength(params: Params, frozen: Frozen) -> Float[Tensor, " rank"]:
    """s e, in the factors' own dtype."""
    return frozen["scale"] * gain(params, frozen)[:, 0]


def distance(gram: Float[Tensor, "rank rank"], present: Float[Tensor, " rank"]) -> Float[Tensor, ""]:
    """|G - I|_F over the present directions."""
    return torch.linalg.vector_norm(gram - torch.diag(present))


def forget(state: dict[str, Tensor], prefix: str) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def is_settled(modules: Mapping[str, Factors], state: Mapping[str, Tensor]) -> bool:
    return all(f"{name}.stays" in state for name in modules)


@torch.no_grad()
def prune(factors: Factors, stays: Tensor) -> None:
    """e := 0 where a direction does not stay."""
    E = factors.params["E"]
    E.masked_fill_(~stays[:, None], 0.0 if "A0" in factors.frozen else -1.0)
