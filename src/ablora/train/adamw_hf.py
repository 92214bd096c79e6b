"""The AdamW that transformers used to have, by which the official programs of several methods step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW


class AdamWHF(AdamW):
    """Adam whose eps stands beside the uncorrected second moment, and whose weights decay after the step.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p <- p - lr c m / (sqrt(v) + eps),   p <- (1 - lr decay) p
    c = sqrt(1 - b2^t) / (1 - b1^t) with `correct_bias`, 1 without: then the first step is (1 - b1) / sqrt(1 - b2), 3.16
    times lr.

    torch's own rule does it: with k = sqrt(1 - b2^t) its step at eps / k is that of c, and at lr / c that of 1.

    Source: huggingface/peft 0.21.2 optimizers/lorafa.py; pilancilab/Riemannian_Preconditioned_LoRA@c3a2c1b Mistral-7B
        custom_optimizer.py (their copies of it).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        correct_bias: bool,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self.correct_bias = correct_bias

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        stepped = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        asked = [{key: group[key] for key in ("lr", "eps", "weight_decay")} for group in self.param_groups]
        for group, params in zip(self.param_groups, stepped):
            group |= self._as_torch_has_it(group, params)
        super().step()
        for group, params, own in zip(self.param_groups, stepped, asked):
            group |= own
            for p in params if own["weight_decay"] else ():
                p.mul_(1 - own["lr"] * own["weight_decay"])

    def _as_torch_has_it(self, group: dict[str, Any], params: list[torch.Tensor]) -> dict[str, float]:
        """Settings under which torch's AdamW makes this step; all parameters of a group are at the same step."""
        count = {float(self.state[p]["step"]) if self.state[p] else 0.0 for p in params} or {0.0}
        (done,) = count
        b1, b2 = group["betas"]
        k = math.sqrt(1 - b2 ** (done + 1))
        lr = group["lr"] if self.correct_bias else group["lr"] * (1 - b1 ** (done + 1)) / k
        return {"lr": lr, "eps": group["eps"] / k, "weight_decay": 0.0}
