"""LoRA-FA: A is held where it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ablora.method.structure._base import Factors
from ablora.method.update._gram import Side, precondition


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeA:
    """Train B alone; A keeps its start, so that a layer's input need not be kept for A's gradient.

    `project`: B's gradient g becomes (1/s^2) g (A A^T + 1e-8 I)^-1, per expert, the B for which the update's gradient
    s g A is the full gradient G projected on A's rows: s g A = G A^T (A A^T)^-1 A.

    Source: arXiv:2308.03303, version 1 without and version 2 with the correction (`project`), which is also
        huggingface/peft 0.21.2 optimizers/lorafa.py.
    Differs: from PEFT, which steps by transformers' former AdamW, eps 1e-6 (here `train.optimizer=adamw_hf` is that
        rule, and torch's AdamW the default), and which rounds the correction to bfloat16 where the machine has it
        (here float64); which takes any two neighbours named lora for a pair (here A and B of one module are one).
        Only the low-rank product is projected: a structure's other tensors have their own gradient.
    """

    revision: ClassVar[int] = 1
    project: bool

    def trains(self, role: str) -> bool:
        return role != "A"

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        return [{"params": [p for parameters in roles.values() for p in parameters], "lr": lr}]

    def step(self, optimizer: Optimizer, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        reports = self._project(modules, experts) if self.project else {}
        optimizer.step()
        return reports

    @torch.no_grad()
    def _project(self, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        sides = []
        for params, frozen in modules.values():
            if (grad := params["B"].grad) is not None:
                grad.div_(frozen["scale"].to(grad.dtype)[:, None].square())
                sides.append(Side(grad, params["A"]))
        return {"preconditioner_fallbacks": float(precondition(sides, experts, delta=1e-8))}
