"""AdaLoRA's allocation: how sensitive the loss is to each direction, and how many may stay at a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A budget of directions over all modules that falls from b_0 to b_T by a cube, over steps t = 1..T.

    t <= t_i            b_0
    t_i < t < T - t_f   floor(b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3)
    t >= T - t_f        b_T;   t_i = round(warmup T), t_f = round(settle T).
    Pruned at multiples of `every` in between, and at T - t_f: `forced` there (the paper's fixed budget; PEFT), or
    `scheduled`, at a multiple of `every` only and else a step later (the original program). What then stays, stays.

    Source: arXiv:2303.10512 section 3.3 and algorithm 1; huggingface/peft 0.21.2 tuners/adalora/layer.py
        (budget_schedule); QingruZhang/AdaLoRA@d10f5eb loralib/loralib/adalora.py.
    Differs: shares of the run in place of steps; the paper prints t - t_i - t_f over the same denominator, which is
        neither b_0 at t_i nor b_T at T - t_f, and which neither program computes.
    """

    warmup: float
    settle: float
    every: int
    final_mask: Literal["forced", "scheduled"]

    def __post_init__(self) -> None:
        check(0 <= self.warmup < 1, "warmup", self.warmup, "a share of the run's steps, from 0 to below 1")
        legal = f"a share of the run's steps, from 0 to below 1 - warmup ({1 - self.warmup:g})"
        check(0 <= self.settle < 1 - self.warmup, "settle", self.settle, legal)
        check(self.every >= 1, "every", self.every, "a number of steps of at least 1")

    def begin(self, steps: int) -> int:
        """t_i of a run of so many steps."""
        return round(self.warmup * steps)

    def end(self, steps: int) -> int:
        """T - t_f."""
        return steps - round(self.settle * steps)

    def budget(self, step: int, steps: int, full: int, target: int) -> int:
        """Directions that may stay after a step."""
        begin, end = self.begin(steps), self.end(steps)
        if step >= end:
            return target
        if step <= begin:
            return full
        return int((full - target) * (1 - (step - begin) / (end - begin)) ** 3 + target)

    def prunes(self, step: int, steps: int) -> bool:
        """Whether directions are chosen anew after a step."""
        begin, end = self.begin(steps), self.end(steps)
        due = step % self.every == 0
        if step < end:
            return step > begin and due
        return step == end and (due or self.final_mask == "forced")


@torch.no_grad()
def observe(value: Tensor, grad: Tensor, state: dict[str, Tensor], name: str, betas: tuple[float, float]) -> None:
    """Smooth one tensor's sensitivity I = |w dL/dw| and its fluctuation, both zero at first.

    I' <- beta1 I' + (1 - beta1) I,   U' <- beta2 U' + (1 - beta2) |I - I'|  with the new I'  (section 3.2).
    """
    now = (value * grad).abs()
    mean = state.get(f"{name}.sensitivity", torch.zeros_like(now))
    spread = state.get(f"{name}.uncertainty", torch.zeros_like(now))
    mean = betas[0] * mean + (1 - betas[0]) * now
    state[f"{name}.sensitivity"] = mean
    state[f"{name}.uncertainty"] = betas[1] * spread + (1 - betas[1]) * (now - mean).abs()


def scores(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], module: str) -> Float[Tensor, " rank"]:
    """S_i: over a module's tensors (A, B, E; rank first), the mean of I' U' over what direction i has of each; a
    tensor that is held still counts nothing."""
    parts = [
        (state[f"{module}.{role}.sensitivity"] * state[f"{module}.{role}.uncertainty"]).mean(1)
        for role in tensors
        if f"{module}.{role}.sensitivity" in state
    ]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(next(iter(tensors.values()))[:, 0])


def keep(found: Mapping[str, Float[Tensor, " rank"]], budget: int) -> dict[str, Bool[Tensor, " rank"]]:
    """True for the `budget` directions of the highest scores over all modules.

    Of equal scores the later are kept. The references prune all that are not above the threshold, ties with it.
    """
    joined = torch.cat(list(found.values()))
    stays = torch.ones_like(joined, dtype=torch.bool)
    stays[joined.argsort(stable=True)[: len(joined) - budget]] = False
    return dict(zip(found, stays.split([len(s) for s in found.values()])))
